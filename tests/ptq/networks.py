"""Small networks with batch norms that the tests of data-free methods share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import normal, seeded


def block(i: int, o: int, kernel: int = 1, groups: int = 1, **options: bool) -> nn.Sequential:
    """Convolution and batch norm."""
    conv = nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o, **options))


class Mobile(nn.Module):
    """Expand, depthwise, project with ReLU6, a residual addition, pooling and a classifier."""

    def __init__(self, channels: int = 6, hidden: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.stem = block(3, channels, 3)
        self.expand = block(channels, hidden)
        self.depthwise = block(hidden, hidden, 3, hidden)
        self.project = block(hidden, channels)
        self.head = block(channels, hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        x = x + self.project(y)
        result: Tensor = self.fc(F.relu6(self.head(x)).mean((2, 3)))
        return result


@torch.no_grad()
def settled(module: nn.Module, shape: tuple[int, ...], samples: int = 256) -> nn.Module:
    """``module`` with random weights, and batch norms that remember normal inputs."""
    module = seeded(module)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        if norm.affine:
            norm.weight.copy_(0.5 + normal(len(norm.weight), seed=1).abs())
            norm.weight[::3] *= -1
            norm.bias.copy_(normal(len(norm.bias), seed=2))
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    module(normal(samples, *shape, seed=3))
    return module.eval()


def output_ranges(parts: Tensor) -> Tensor:
    """The largest absolute weight of each output channel, (O,)."""
    return parts.abs().flatten(3).amax((2, 3)).flatten()


def input_ranges(parts: Tensor) -> Tensor:
    """The largest absolute weight of each input channel, (I,)."""
    return parts.abs().flatten(3).amax((1, 3)).flatten()
