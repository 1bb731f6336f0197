"""Means and sums along any axes: a walk over the outputs, and one over the terms of each."""

import math

from halfstep.export.c99.draft import Draft
from halfstep.export.c99.numbers import mean_ratios
from halfstep.export.c99.walks import Walk
from halfstep.program.ir import Op


def reduction(draft: Draft, op: Op) -> None:
    """The input is read as it lies, and its terms are added where they are."""
    shape, steps = draft.shape(op.inputs[0]), draft.steps_of(op.inputs[0])
    axes, out_steps = op.attrs["axes"], draft.steps_of(op.output)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    places = kept if op.attrs["keepdim"] else range(len(kept))
    own = [steps[axis] for axis in kept]
    outputs = Walk.over(
        tuple(shape[axis] for axis in kept), own, own, [out_steps[place] for place in places]
    )
    added = [steps[axis] for axis in axes]
    terms = Walk.over(tuple(shape[axis] for axis in axes), added, added, added)
    count = math.prod(shape[axis] for axis in axes) if op.kind == "mean" else 1
    scales = (draft.program.grid(name).scale for name in (op.inputs[0], op.output))
    ratio = mean_ratios(op.formula or "", [count], *scales)
    layer = draft.layer(
        "hs_reduction",
        op.output,
        {
            "terms": draft.walk(f"{op.output}/terms", terms),
            "in_zero": draft.zero(op.inputs[0]),
            "ratio": ratio.one,
            "rounding": ratio.rounding,
            "out": draft.codes(op),
        },
    )
    x = draft.read(op.inputs[0])
    call = f"hs_reduce({layer}, {draft.walk(op.output, outputs)}, {x}, {draft.names[op.output]});"
    draft.add(op, [call], [x], "pool", draft.size(op.inputs[0]))
