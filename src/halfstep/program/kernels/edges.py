"""Where codes begin and end."""

from halfstep.program.formulas import FORMULAS
from halfstep.program.kernels.setup import Array, Setup, Step


def quantize(setup: Setup) -> Step:
    """Real values to codes, by the operation's formula."""
    grid = setup.out_grid
    formula = FORMULAS["quantize"][setup.op.formula or "division"]

    def run(real: Array) -> Array:
        real = setup.xp.astype(real, setup.xp.float32, copy=False)
        return setup.saturate(formula(real, grid.scale, int(grid.zero_point)))

    return run


def dequantize(setup: Setup) -> Step:
    """Codes to real values."""
    return lambda codes: setup.dequantize(0, codes)
