"""Float operations that ONNX Runtime would not leave in float.

Between a dequantize and a quantize it replaces a float operation by its integer kernel, and
quantizes float weights for that, per tensor. A plan that keeps an operation in float means it, so
the writer puts something in front of these operations that no optimizer looks through.
"""

from halfstep.core.execution import Execution
from halfstep.program.bounds import WEIGHTED
from halfstep.program.ir import IntProgram, Op

_FUSED = frozenset(
    {
        *(*WEIGHTED, "matmul", "add", "mul", "avg_pool", "global_avg_pool"),
        *("softmax", "sigmoid", "leaky_relu", "concat"),
    }
)
# What a dequantize or a quantize is moved through, or swallows.
_TRANSPARENT = frozenset(
    {"reshape", "transpose", "slice", "pad", "max_pool", "expand", "relu", "clamp"}
)


def fused_anyway(program: IntProgram) -> frozenset[str]:
    """The outputs of these operations of ``program``."""
    from_codes: set[str] = set()
    to_codes: set[str] = set()
    for op in program.ops:
        if op.kind == "dequantize" or (_is_transparent(op) and op.inputs[0] in from_codes):
            from_codes.add(op.output)
    for op in reversed(program.ops):
        if op.kind == "quantize" or (_is_transparent(op) and op.output in to_codes):
            to_codes.add(op.inputs[0])
    return frozenset(
        op.output
        for op in program.ops
        if op.execution is Execution.FLOAT
        and op.kind in _FUSED
        and op.output in to_codes
        and from_codes.issuperset(op.inputs[:1] if op.kind in WEIGHTED else op.inputs)
    )


def _is_transparent(op: Op) -> bool:
    return op.execution is Execution.FLOAT and op.kind in _TRANSPARENT
