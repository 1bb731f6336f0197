"""The fixed grid of a hyperbolic tangent: ``2^bits`` steps of ``2^(1 - bits)``, whatever the data.

Reference: the output parameters of LiteRT's integer kernel (scale 1/128, zero point 0 for int8),
which is refused with any other (``docs/arithmetic.md``). Data is checked like everywhere else,
then ignored.
"""

import numpy as np

from halfstep.quant.calibrators.base import Range
from halfstep.quant.calibrators.unit_interval import UnitInterval


class SignedUnitInterval(UnitInterval):
    """``[-1, 1 - 2^(1 - bits)]``: one step less than 1, so that the step is a power of two."""

    def _range(self) -> tuple[Range, Range]:
        return np.asarray(-1.0), np.asarray(1.0 - 2.0 ** (1 - self.qtype.bits))
