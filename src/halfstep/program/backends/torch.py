"""The fast backend: torch, on the CPU or a GPU. The one file of the integer world with torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Types that torch can hold but hardly compute with, and one that holds their values.
_WIDER = {"uint16": "int32"}
# PyTorch adds the precisions of single operations to this module when it is loaded.
_mkldnn: Any = torch.backends.mkldnn


class TorchBackend:
    """Torch tensors on ``device``."""

    xp: Any = array_api_compat.torch

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, and none of the caller's autocast to fewer bits."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def asarray(self, values: NDArray[Any]) -> Tensor:
        """A tensor on this backend's device; read-only arrays are copied."""
        values = values.astype(_WIDER.get(values.dtype.name, values.dtype), copy=False)
        values = np.require(values, requirements=["C", "W"])
        return torch.from_numpy(values).to(self.device)

    def to_numpy(self, array: Tensor) -> NDArray[Any]:
        """The values on the host."""
        values: NDArray[Any] = array.detach().cpu().numpy()
        return values

    def dtype(self, name: str) -> torch.dtype:
        """See ``Backend.dtype``."""
        found: torch.dtype = getattr(torch, _WIDER.get(name, name))
        return found

    def saturate(self, codes: Tensor, low: int, high: int, dtype: str) -> Tensor:
        """See ``Backend.saturate``."""
        return codes.clamp(low, high).to(self.dtype(dtype))

    def erf(self, x: Tensor) -> Tensor:
        """See ``Backend.erf``."""
        return x.erf()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """See ``Backend.matmul``."""
        dtype = self._exact(a.dtype, _mkldnn.matmul.fp32_precision)
        return (a.to(dtype) @ b.to(dtype)).to(a.dtype)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See ``Backend.linear``."""
        dtype = self._exact(x.dtype, _mkldnn.matmul.fp32_precision)
        bias = None if bias is None else bias.to(dtype)
        return F.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        """See ``Backend.convolve``."""
        function = F.conv1d if x.ndim == 3 else F.conv2d
        dtype = self._exact(x.dtype, _mkldnn.conv.fp32_precision)
        bias = None if bias is None else bias.to(dtype)
        out = function(x.to(dtype), weight.to(dtype), bias, stride, 0, dilation, groups)
        return out.to(x.dtype)

    def _exact(self, dtype: torch.dtype, allowed: str) -> torch.dtype:
        """A type in which products of integers in ``dtype`` are exact here and now.

        A GPU may run float32 by Winograd or in TF32, and a CPU in bfloat16 where the user allows
        it for training; nothing does so with float64.

        Args:
            dtype: float32 or float64.
            allowed: the precision that oneDNN may use for float32, by PyTorch's name.
        """
        plain = self.device.type == "cpu" and allowed in ("none", "ieee")
        return dtype if plain else torch.float64
