"""The formulas of each kind of operation, by name: what kernels compute and ``check`` accepts.

The tables of ``core`` are looked through, not copied: a law that breaks a formula in one of them
breaks it in the kernels.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from halfstep.core import fake_quantize
from halfstep.core.elementwise import ADD, MUL, QUANTIZE, SUB
from halfstep.core.pooling import AVERAGE, AVERAGE_OF_CODES, MEAN
from halfstep.core.requant import ACCUMULATOR
from halfstep.core.softmax import SOFTMAX
from halfstep.program.bounds import REDUCED, WEIGHTED

Formulas = Mapping[str, Callable[..., Any]]

# Of sums that no bias follows as a real value, and of those that one does.
SUMS: Formulas = ChainMap(fake_quantize.WITHOUT_BIAS, ACCUMULATOR)
_BIASED: Formulas = ChainMap(fake_quantize.WITH_BIAS, ACCUMULATOR)

FORMULAS: Mapping[str, Formulas] = {
    **dict.fromkeys(WEIGHTED, _BIASED),
    **dict.fromkeys(REDUCED, MEAN),
    "matmul": SUMS,
    "add": ChainMap(fake_quantize.ADD, ADD),
    "sub": SUB,
    "mul": MUL,
    "avg_pool": ChainMap(MEAN, AVERAGE_OF_CODES, AVERAGE),
    "softmax": SOFTMAX,
    "layer_norm": ACCUMULATOR,
    "quantize": ChainMap(fake_quantize.QUANTIZE, QUANTIZE),
}
