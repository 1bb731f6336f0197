"""Layer normalization in C."""

import math

import numpy as np

from halfstep.core.normalize import FRACTION, eps_term
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.numbers import sum_ratios
from halfstep.program.ir import Op
from halfstep.program.kernels.normalize import affine_of


def layer_norm(draft: Draft, op: Op) -> None:
    """Rows of the last axes; every position has its own factor and addend."""
    program, shape = draft.program, draft.shape(op.output)
    length = math.prod(shape[-op.attrs["n_axes"] :])
    scale_in = program.grid(op.inputs[0]).scale
    gamma, scale, beta = affine_of(program, op)
    ratio = sum_ratios(
        op.formula or "",
        np.asarray(2.0**-FRACTION, np.float32),
        scale,
        program.grid(op.output).scale,
    )
    arrays = {
        name: draft.constant(
            f"{op.output}/{name}",
            np.broadcast_to(values.reshape(-1), (length,)).astype(dtype),
            "biases",
        )
        for name, values, dtype in (("gamma", gamma, np.int16), ("beta", beta, np.int32))
    }
    layer = draft.layer(
        "hs_norm",
        op.output,
        {
            "rows": draft.size(op.output) // length,
            "length": length,
            "in_zero": draft.zero(op.inputs[0]),
            "eps": f"UINT64_C({eps_term(length, scale_in, op.attrs['eps'])})",
            **arrays,
            "ratio": ratio.one,
            "rounding": ratio.rounding,
            "out": draft.codes(op),
        },
    )
    x = draft.read(op.inputs[0], channels_last=False)
    call = f"hs_layer_norm({layer}, {x}, {draft.names[op.output]});"
    draft.add(op, [call], [x], "norm", draft.size(op.output), [x])
