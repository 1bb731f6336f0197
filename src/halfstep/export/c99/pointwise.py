"""Operations code by code: sums, products, the smaller of two, and tables."""

import numpy as np

from halfstep.core.elementwise import common_scale_ratios
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.numbers import fixed_ratio, product_ratio, stored_offset
from halfstep.export.c99.walks import Walk, broadcast_steps
from halfstep.program.ir import Op


def _visit(draft: Draft, op: Op) -> tuple[str, list[str], list[str]]:
    """The walk over two operands, their variables, and those that may be written over."""
    out, steps = draft.shape(op.output), draft.steps_of(op.output)
    a, b = (broadcast_steps(draft.shape(name), draft.steps_of(name), out) for name in op.inputs)
    walk = Walk.over(out, a, b, steps)
    variables = [draft.read(name) for name in op.inputs]
    over = [variable for i, variable in enumerate(variables) if walk.same_order(i)]
    return draft.walk(op.output, walk), variables, over


def add(draft: Draft, op: Op) -> None:
    """Addition and subtraction."""
    grids = [draft.program.grid(name) for name in (*op.inputs, op.output)]
    ratios = map(fixed_ratio, common_scale_ratios(*(grid.scale for grid in grids)))
    layer = draft.layer(
        "hs_addition",
        op.output,
        {
            **dict(zip(("a", "b", "sum"), ratios, strict=True)),
            **{f"{x}_zero": draft.zero(n) for x, n in zip("ab", op.inputs, strict=True)},
            "b_sign": 1 if op.kind == "add" else -1,
            "out": draft.codes(op),
        },
    )
    walk, operands, over = _visit(draft, op)
    call = f"hs_add({layer}, {walk}, {', '.join(operands)}, {draft.names[op.output]});"
    draft.add(op, [call], operands, "add", draft.size(op.output), over)


def mul(draft: Draft, op: Op) -> None:
    """Products, code by code."""
    scales = [draft.program.grid(name).scale for name in (*op.inputs, op.output)]
    ratio = product_ratio(op.formula or "", *scales)
    layer = draft.layer(
        "hs_product",
        op.output,
        {
            "ratio": ratio.one,
            **{f"{x}_zero": draft.zero(n) for x, n in zip("ab", op.inputs, strict=True)},
            "rounding": ratio.rounding,
            "out": draft.codes(op),
        },
    )
    walk, operands, over = _visit(draft, op)
    call = f"hs_multiply({layer}, {walk}, {', '.join(operands)}, {draft.names[op.output]});"
    draft.add(op, [call], operands, "mul", draft.size(op.output), over)


def minimum(draft: Draft, op: Op) -> None:
    """The smaller of two codes on one grid."""
    walk, operands, over = _visit(draft, op)
    call = f"hs_minimum({walk}, {', '.join(operands)}, {draft.names[op.output]});"
    draft.add(op, [call], operands, "copy", draft.size(op.output), over)


def lookup(draft: Draft, op: Op) -> None:
    """A function of one code, from a table with an entry for every code."""
    source, out = (draft.program.grid(name).qtype for name in (op.inputs[0], op.output))
    low, high = op.clamp or (out.qmin, out.qmax)
    table = np.clip(draft.program.constant(op.inputs[1]).astype(np.int64), low, high)
    values = (table - stored_offset(out)).astype(np.int8)
    name = draft.constant(f"{op.output}/table", values, "tables")
    lowest = source.qmin - stored_offset(source)
    x, n_codes = draft.read(op.inputs[0]), draft.size(op.output)
    call = f"hs_lookup({name}, {lowest}, {x}, {n_codes}, {draft.names[op.output]});"
    draft.add(op, [call], [x], "lookup", n_codes, [x])
