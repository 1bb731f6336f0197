"""How the values of a program lie in a ``.tflite`` file: sizes of one sample, channels last.

Convolutions and pools want their channels last; what is computed value by value follows them. So
values that such operations tie together get one layout, and only where a reshape, a transpose or
a product needs the program's own order does a transpose of the file stand in between. Flattening
in front of a linear layer needs none: the columns of its weight are permuted instead.
"""

from collections.abc import Mapping
from dataclasses import replace

from halfstep.core.execution import BATCH
from halfstep.formats.layout import Layout, channels_last
from halfstep.program.batch import one_sample, outer_sizes
from halfstep.program.ir import IntProgram, Op

# Operations that the format has with channels last only.
_CHANNELS_LAST = frozenset(
    {"conv", "conv_transpose", "max_pool", "avg_pool", "upsample_nearest", "upsample_linear"}
)
# Operations whose result has the program's own order of axes.
_IN_ORDER = frozenset({"transpose", "linear", "matmul", "layer_norm", "embedding"})


def find_layouts(program: IntProgram) -> dict[str, Layout]:
    """The layout of every tensor of a program; constants are in the program's order."""
    outer, shapes = outer_sizes(program), one_sample(program)
    last = _channels_last_values(program)
    found = {}
    for name, shape in shapes.items():
        tensor = program.tensors[name]
        perm = channels_last(len(shape)) if name in last else tuple(range(len(shape)))
        batch = tensor.shape.index(BATCH) if BATCH in tensor.shape else None
        found[name] = Layout(shape, shape, perm, batch, outer[name])
    for op in program.ops:
        source = found[op.inputs[0]]
        if op.kind == "reshape" and not source.in_order and _is_folded(program, op, found):
            found[op.output] = replace(found[op.output], split=source.shape, perm=source.perm)
    return found


def keeps_channels(program: IntProgram, op: Op) -> bool:
    """Whether a reshape leaves samples and channels alone, so that channels may be last."""
    before, after = (program.tensor(name).shape for name in (op.inputs[0], op.output))
    return min(len(before), len(after)) > 2 and before[:2] == after[:2]


def _channels_last_values(program: IntProgram) -> set[str]:
    """Values of three or more axes that are tied to an operation with channels last."""
    group_of: dict[str, set[str]] = {}
    for op in program.ops:
        group_of[op.output] = {op.output}
        for name in op.inputs:
            group_of.setdefault(name, {name})
        rank = len(program.tensor(op.output).shape)
        for name in _tied(program, op):
            tensor = program.tensor(name)
            if tensor.data is None and (len(tensor.shape) == rank or op.kind == "reshape"):
                joined = group_of[op.output] | group_of[name]
                group_of |= dict.fromkeys(joined, joined)
    last: set[str] = set()
    for op in program.ops:
        if op.kind in _CHANNELS_LAST:
            last |= group_of[op.output]
    return {name for name in last if len(program.tensor(name).shape) > 2}


def _tied(program: IntProgram, op: Op) -> tuple[str, ...]:
    """The inputs that have the layout of the output."""
    if op.kind in _CHANNELS_LAST or op.kind == "lookup":
        return op.inputs[:1]
    if op.kind == "reshape":
        return op.inputs if keeps_channels(program, op) else ()
    reduces = op.kind in ("mean", "sum") and not op.attrs["keepdim"]
    return () if op.kind in _IN_ORDER or reduces else op.inputs


def _is_folded(program: IntProgram, op: Op, layouts: Mapping[str, Layout]) -> bool:
    """Whether a reshape flattens all but the samples, for linear layers alone."""
    before, after = layouts[op.inputs[0]].shape, program.tensor(op.output).shape
    readers = [other for other in program.ops if op.output in other.inputs]
    return (
        len(after) == 2
        and after[0] == program.tensor(op.inputs[0]).shape[0] == BATCH
        and before[0] == 1
        and op.output not in program.outputs
        and all(other.kind == "linear" for other in readers)
    )
