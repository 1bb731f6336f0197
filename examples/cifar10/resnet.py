"""ResNet-20 for CIFAR-10, with the parameter-free (option A) shortcuts of the paper.

Reference: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (arXiv
1512.03385), section 4.2: 3x3 convolutions in three stages of 16, 32 and 64 channels,
``6 n + 2`` weighted layers, and shortcuts that subsample and pad with zero channels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WEIGHTS = Path(__file__).parent / "resnet20.safetensors"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, before, self.new_channels - before))


class ResNet(nn.Module):
    """(N, 3, 32, 32) normalized images -> (N, 10) logits. ``depth`` is 6 n + 2."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        n_blocks, rest = divmod(depth - 2, 6)
        if rest or n_blocks < 1:
            raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, 32, ...), found {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n_blocks, stride=1)
        self.layer2 = self._stage(16, 32, n_blocks, stride=2)
        self.layer3 = self._stage(32, 64, n_blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, n_blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(n_blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        y = F.avg_pool2d(y, y.shape[-1]).flatten(1)
        return self.linear(y)


def normalize(images: Tensor) -> Tensor:
    """Uint8 images (N, 3, 32, 32) -> the float32 inputs that the networks were trained on."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def resnet20(weights: Path | None = WEIGHTS) -> ResNet:
    """The trained network in eval mode; ``weights=None`` gives random ones."""
    model = ResNet(20)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()
