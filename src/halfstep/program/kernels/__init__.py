"""One file a family of operations; a kernel prepares one operation and returns its step.

``KERNELS[execution, kind]`` is the table that the engine reads. A step is given the input arrays;
the steps of ``NEED_BATCH`` are given the number of samples as well, which their inputs do not show.
"""

from halfstep.core.execution import Execution
from halfstep.program.kernels import (
    copies,
    edges,
    elementwise,
    floats,
    normalize,
    pool,
    softmax,
    weighted,
)
from halfstep.program.kernels.setup import Kernel

NEED_BATCH = frozenset({"expand"})

_INTEGER: dict[str, Kernel] = {
    "conv": weighted.conv,
    "conv_transpose": weighted.conv_transpose,
    "linear": weighted.linear,
    "matmul": weighted.matmul,
    "add": elementwise.add,
    "sub": elementwise.sub,
    "mul": elementwise.mul,
    "lookup": elementwise.lookup,
    "max_pool": pool.max_pool,
    "avg_pool": pool.avg_pool,
    "global_avg_pool": pool.global_avg_pool,
    "mean": pool.mean,
    "sum": pool.sum_,
    "softmax": softmax.softmax,
    "layer_norm": normalize.layer_norm,
}
_COPY: dict[str, Kernel] = {
    "reshape": copies.reshape,
    "transpose": copies.transpose,
    "slice": copies.slice_,
    "pad": copies.pad,
    "concat": copies.concat,
    "minimum": copies.minimum,
    "expand": copies.expand,
    "upsample_nearest": copies.upsample_nearest,
    "embedding": copies.embedding,
    "max_pool": pool.max_pool,
}

KERNELS: dict[tuple[Execution, str], Kernel] = {
    **{(Execution.INTEGER, kind): kernel for kind, kernel in _INTEGER.items()},
    **{(Execution.SCALED, kind): _INTEGER[kind] for kind in ("linear", "matmul")},
    **{(Execution.DEQUANTIZED, kind): kernel for kind, kernel in _INTEGER.items()},
    **{(Execution.COPY, kind): kernel for kind, kernel in _COPY.items()},
    **{(Execution.FLOAT, kind): kernel for kind, kernel in floats.KERNELS.items()},
    (Execution.EDGE, "quantize"): edges.quantize,
    (Execution.EDGE, "dequantize"): edges.dequantize,
}
