"""Where codes begin and end."""

from array_api_compat import array_namespace

from halfstep.core.elementwise import QUANTIZE
from halfstep.program.kernels.call import Array, Call


def quantize(call: Call) -> Array:
    """Real values to codes, by the operation's formula."""
    grid = call.out_grid
    formula = QUANTIZE[call.op.formula or "division"]
    real = call.inputs[0]
    xp = array_namespace(real)
    return call.saturate(formula(xp.astype(real, xp.float32), grid.scale, int(grid.zero_point)))


def dequantize(call: Call) -> Array:
    """Codes to real values."""
    return call.dequantize(0)
