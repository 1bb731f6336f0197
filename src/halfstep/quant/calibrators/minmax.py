"""The smallest and largest values seen.

References: B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018, section 3.1 (weights: ``a = min w``, ``b = max w``);
R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: a whitepaper",
2018, section 2, per channel.

Equation: ``[low, high] = [min x, max x]``.

Deviations: none. The paper's nudging of both ends, so that zero is on the grid, is in
``Affine.from_range``.
"""

from typing import Self

import torch

from halfstep.quant.calibrators.base import Calibrator, Range


class MinMax(Calibrator):
    """The range of all values seen; exact, and clips nothing."""

    def _observe(self, values: torch.Tensor, low: Range, high: Range) -> None:
        """The running range that every calibrator keeps is all there is."""

    def _merge(self, other: Self) -> None:
        """The running range that every calibrator keeps is all there is."""

    def _range(self) -> tuple[Range, Range]:
        return self.low, self.high
