"""Small modules that several tests share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed values, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` in eval mode with every parameter and statistic drawn anew, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            else:
                value.normal_(0, 0.3, generator=generator)
    return module.eval()


class Call(nn.Module):
    """``function(*parts, x)`` with the parts as submodules, for graphs of a few operations."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.part = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        """One input."""
        return self.function(*self.part, x)


class CallTwo(nn.Module):
    """``function(*parts, x, y)``."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.part = nn.ModuleList(parts)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """Two inputs."""
        return self.function(*self.part, x, y)


class Residual(nn.Module):
    """Convolution, batch norm and ReLU, an addition around them, pooling and a classifier."""

    def __init__(self, channels: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.bn1(self.stem(x)).relu()
        x = (x + self.bn2(self.conv(x))).relu()
        result: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return result
