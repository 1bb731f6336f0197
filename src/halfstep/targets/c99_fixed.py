"""Plain C99 for bare metal in gemmlowp's fixed point, two roundings for every sum."""

from dataclasses import replace

from halfstep.targets import c99

# Kinds that requantize a sum, a product or a mean.
_RESCALED = (
    "conv",
    "conv_transpose",
    "linear",
    "matmul",
    "mul",
    "avg_pool",
    "global_avg_pool",
    "mean",
    "sum",
    "layer_norm",
)

TARGET = replace(
    c99.TARGET,
    name="c99_fixed",
    title="plain C99, integers only: gemmlowp's fixed point, two roundings",
    rules={
        **c99.RULES,
        **{kind: replace(c99.RULES[kind], formula="double_rounding") for kind in _RESCALED},
    },
)
