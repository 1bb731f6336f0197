"""Operations that move values and never change them: the same code for codes and real values."""

from array_api_compat import array_namespace

from halfstep.core.execution import BATCH
from halfstep.program.kernels.call import Array, Call


def reshape(call: Call) -> Array:
    """To the shape of the output; ``BATCH`` is whatever is left."""
    return array_namespace(call.inputs[0]).reshape(call.inputs[0], call.op.attrs["shape"])


def transpose(call: Call) -> Array:
    """Permute the axes."""
    return array_namespace(call.inputs[0]).permute_dims(call.inputs[0], call.op.attrs["perm"])


def slice_(call: Call) -> Array:
    """``[start:stop:step]`` along one axis."""
    attrs = call.op.attrs
    window = slice(attrs["start"], attrs["stop"], attrs["step"])
    return call.inputs[0][(slice(None),) * attrs["axis"] + (window,)]


def pad(call: Call) -> Array:
    """Pad every axis by (before, after) with real zero, which is the code ``zero_point``."""
    x = call.inputs[0]
    xp = array_namespace(x)
    value = call.op.attrs["value"] if call.grids[0] is None else int(call.grid(0).zero_point)
    for axis, (before, after) in enumerate(call.op.attrs["padding"]):
        for size, at_front in ((before, True), (after, False)):
            if size:
                shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
                margin = xp.full(shape, value, dtype=x.dtype, device=x.device)
                x = xp.concat([margin, x] if at_front else [x, margin], axis=axis)
    return x


def concat(call: Call) -> Array:
    """Join along one axis."""
    return array_namespace(*call.inputs).concat(list(call.inputs), axis=call.op.attrs["axis"])


def expand(call: Call) -> Array:
    """Repeat axes of size 1; ``BATCH`` stands for the number of samples."""
    shape = tuple(call.batch if size == BATCH else size for size in call.op.attrs["shape"])
    return array_namespace(call.inputs[0]).broadcast_to(call.inputs[0], shape)


def upsample_nearest(call: Call) -> Array:
    """Repeat each value along the spatial axes by an integer factor."""
    x = call.inputs[0]
    xp = array_namespace(x)
    for axis, factor in enumerate(call.op.attrs["factors"], start=2):
        x = xp.repeat(x, factor, axis=axis)
    return x


def embedding(call: Call) -> Array:
    """Rows of the table (first input) chosen by integer indices (second input)."""
    return call.inputs[0][call.inputs[1]]
