"""Every kind of operation that C has a form for: ``EMITTERS[kind](draft, op)``."""

from collections.abc import Callable, Mapping

from halfstep.export.c99 import moves, norms, pointwise, pools, products, reductions
from halfstep.export.c99.draft import Draft
from halfstep.program.ir import Op

EMITTERS: Mapping[str, Callable[[Draft, Op], None]] = {
    "conv": products.conv,
    "conv_transpose": products.conv,
    "linear": products.linear,
    "matmul": products.matmul,
    "add": pointwise.add,
    "sub": pointwise.add,
    "mul": pointwise.mul,
    "minimum": pointwise.minimum,
    "lookup": pointwise.lookup,
    "max_pool": pools.max_pool,
    "avg_pool": pools.average,
    "global_avg_pool": pools.average,
    "mean": reductions.reduction,
    "sum": reductions.reduction,
    "softmax": pools.softmax,
    "layer_norm": norms.layer_norm,
    "reshape": moves.reshape,
    "transpose": moves.transpose,
    "slice": moves.slice_,
    "concat": moves.concat,
    "pad": moves.pad,
    "upsample_nearest": moves.upsample_nearest,
    "expand": moves.expand,
    "embedding": moves.embedding,
}
