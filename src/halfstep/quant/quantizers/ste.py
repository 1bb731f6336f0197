"""A fixed grid with a straight-through gradient.

Reference: Krishnamoorthi 2018 (arXiv 1806.08342), section 2.4.2; Jacob et al. 2018 (arXiv
1712.05877), section 3. Symbols: ``w_out`` is the result, ``(wmin, wmax)`` the range of the grid;
the gradient is 1 inside and 0 outside. Deviation: "inside" is decided on the rounded code, so
values up to half a step beyond the last level still learn.
"""

import torch
from torch import Tensor

from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.quant.functional import fake_quantize
from halfstep.quant.quantizer import Quantizer, as_tensor, not_calibrated


class StraightThrough(Quantizer):
    """Scale and zero point are buffers: training moves values, never the grid."""

    scale: Tensor
    zero_point: Tensor
    found: Tensor

    def __init__(
        self,
        site: str,
        spec: QuantSpec,
        n_channels: int | None = None,
        n_groups: int | None = None,
    ) -> None:
        super().__init__(site, spec)
        shape = [n for n in (n_channels, n_groups) if n is not None]
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape))
        self.register_buffer("found", torch.tensor(False))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """See ``halfstep.quant.functional.fake_quantize``."""
        if not self.found:
            raise not_calibrated(self.site)
        qtype, axis, size = self.spec.qtype, self.spec.axis, self.spec.group_size
        return fake_quantize(x, self.scale, self.zero_point, qtype.qmin, qtype.qmax, axis, size)

    def grid(self) -> Affine:
        """The grid in the buffers."""
        if not self.found:
            raise not_calibrated(self.site)
        scale, zero_point = self.scale.cpu().numpy(), self.zero_point.cpu().numpy()
        spec = self.spec
        return Affine(spec.qtype, scale, zero_point.astype("int32"), spec.axis, spec.group_size)

    def set_grid(self, grid: Affine) -> None:
        """Copy the grid into the buffers."""
        scale, zero_point = as_tensor(grid, self.scale)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.found.fill_(True)
