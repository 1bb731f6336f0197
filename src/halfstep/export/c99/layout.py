"""How each value of a model lies in memory, for one sample.

Images lie channels-last, which is what convolutions and pools want: all that a window reads of one
row is then in one piece, and a camera gives pixels like that. Matrices lie row-major. Operations
that take any order give what they are given, or what their reader wants.
"""

from collections.abc import Mapping

import numpy as np

from halfstep.core.execution import BATCH
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram, Op

Shape = tuple[int, ...]

OF_IMAGES = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool", "global_avg_pool"})
OF_MATRICES = frozenset({"linear", "matmul", "embedding", "layer_norm"})
# Visit input and output in the same order.
IN_PLACE_ORDER = frozenset({"lookup", "softmax"})
_TAKES_ANY = frozenset(
    {"add", "sub", "mul", "minimum", "concat", "slice", "pad", "upsample_nearest"}
)


def shapes_of_one_sample(program: IntProgram) -> dict[str, Shape]:
    """The shape of every tensor with a batch of one, as the engine makes them.

    A size that grows with the batch may be a multiple of it, so 1 cannot be put in its place.
    """
    inputs = []
    for name in program.inputs:
        tensor = program.tensor(name)
        shape = tuple(1 if size == BATCH else size for size in tensor.shape)
        inputs.append(np.zeros(shape, tensor.dtype))
    computed = [op.output for op in program.ops]
    kept = Engine(program).run(inputs, keep=computed).kept
    known = {n: t.data.shape for n, t in program.tensors.items() if t.data is not None}
    given = {name: x.shape for name, x in zip(program.inputs, inputs, strict=True)}
    return {**known, **given, **{name: values.shape for name, values in kept.items()}}


def channels_last(program: IntProgram, shapes: Mapping[str, Shape]) -> frozenset[str]:
    """The tensors that lie channels-last."""
    readers: dict[str, list[Op]] = {}
    for op in program.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    found: set[str] = set()
    for op in program.ops:
        wanted = any(
            reader.kind in OF_IMAGES and reader.inputs[0] == op.output
            for reader in readers.get(op.output, ())
        )
        if len(shapes[op.output]) > 2 and _is_last(op, wanted, found):
            found.add(op.output)
    return frozenset(found)


def _is_last(op: Op, wanted: bool, found: set[str]) -> bool:
    if op.kind in OF_IMAGES:
        return True
    if op.kind in OF_MATRICES:
        return False
    if op.kind in IN_PLACE_ORDER:
        return op.inputs[0] in found
    return wanted or (op.kind in _TAKES_ANY and any(name in found for name in op.inputs))
