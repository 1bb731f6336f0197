"""Addition, subtraction, multiplication and tables of codes."""

from collections.abc import Callable

from array_api_compat import array_namespace

from halfstep.core.elementwise import ADD, MUL, SUB
from halfstep.program.kernels.call import Array, Call


def _binary(table: dict[str, Callable[..., Array]]) -> Callable[[Call], Array]:
    def kernel(call: Call) -> Array:
        a, b = call.inputs
        xp = array_namespace(a, b)
        ga, gb, gy = call.grid(0), call.grid(1), call.out_grid
        codes = table[call.op.formula or ""](
            xp.astype(a, xp.int32),
            xp.astype(b, xp.int32),
            *(grid.scale for grid in (ga, gb, gy)),
            *(int(grid.zero_point) for grid in (ga, gb, gy)),
        )
        return call.saturate(codes)

    kernel.__doc__ = f"Two arrays of codes, broadcast; formulas: {', '.join(table)}."
    return kernel


add = _binary(ADD)
sub = _binary(SUB)
mul = _binary(MUL)


def lookup(call: Call) -> Array:
    """A function of one code: the table (second input) holds the output code of each input code."""
    codes, table = call.inputs
    xp = array_namespace(codes, table)
    index = xp.astype(codes, xp.int64) - call.grid(0).qtype.qmin
    return table[index]
