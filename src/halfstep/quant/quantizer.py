"""What sits on a value of the graph: first it watches, then it quantizes."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.base import Calibrator


class Quantizer(nn.Module, ABC):
    """The quantizer of one site, or of several that share a grid.

    Attributes:
        site: the name of the (first) site.
        spec: what was asked for.
        enabled: whether values are moved onto the grid; off, they pass unchanged.
        calibrator: while it is set, values are shown to it and pass unchanged.
    """

    def __init__(self, site: str, spec: QuantSpec) -> None:
        super().__init__()
        self.site = site
        self.spec = spec
        self.enabled = True
        self.calibrator: Calibrator | None = None

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` on the grid, differentiable as the method says."""

    @abstractmethod
    def grid(self) -> Affine:
        """The grid.

        Raises:
            CalibrationError: none was found yet.
        """

    @abstractmethod
    def set_grid(self, grid: Affine) -> None:
        """Start from this grid."""

    def forward(self, x: Tensor) -> Tensor:
        """Watch, quantize or pass, depending on the state."""
        if self.calibrator is not None:
            try:
                self.calibrator.update(x.detach())
            except CalibrationError as error:
                raise CalibrationError(f"{self.site}: {error}") from error
            return x
        return self.fake_quantize(x) if self.enabled else x

    def extra_repr(self) -> str:
        """The site and its spec, for printing a model."""
        return f"{self.site}: {self.spec}{'' if self.enabled else ' (off)'}"


def not_calibrated(site: str) -> CalibrationError:
    """The error for a grid that nobody has found yet."""
    return CalibrationError(
        f"{site}: it has no range yet; run halfstep.calibrate(model, data) first"
    )


def as_tensor(grid: Affine, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point as float32 tensors on the device of ``like``."""
    scale = torch.tensor(grid.scale, dtype=torch.float32, device=like.device)
    zero_point = torch.tensor(grid.zero_point, dtype=torch.float32, device=like.device)
    return scale, zero_point
