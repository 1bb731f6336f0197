"""The fixed grid of probabilities: ``2^bits`` steps of ``1 / 2^bits``, whatever the data.

Reference: the output parameters of integer softmax kernels (scale 1/256, zero point 0 for uint8):
gemmlowp and its heirs fix them, and ONNX Runtime's softmax multiplies by ``floor(1 / scale)``, so
that any scale whose reciprocal is no integer gives probabilities that are too small
(``docs/arithmetic.md``). Data is checked like everywhere else, then ignored.
"""

import numpy as np
import torch

from halfstep.quant.calibrators.base import Calibrator, Range


class UnitInterval(Calibrator):
    """``[0, 1 - 2^-bits]``: one step less than 1, so that the step is a power of two."""

    per_channel = False

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        """Nothing of the data matters."""

    def _merge(self, other: "UnitInterval") -> None:
        """Nothing of the data matters."""

    def _range(self) -> tuple[Range, Range]:
        return np.asarray(0.0), np.asarray(1.0 - 2.0**-self.qtype.bits)
