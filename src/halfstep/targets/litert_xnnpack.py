"""LiteRT as users open it: XNNPACK, and optimized kernels for what that does not take.

The file is that of ``litert_ref``; the formulas are not. Measured on ai-edge-litert 2.3 on x86-64
(``docs/arithmetic.md``), and measured again by ``tests/runtimes``. XNNPACK takes convolutions,
linear layers, additions, subtractions, products, means, moves of codes and some functions; matrix
products of activations, averages, softmax, GELU and hard-swish run on LiteRT's own kernels, which
for these compute what the table says.
"""

from dataclasses import replace

from halfstep.core import tables
from halfstep.core.target import always
from halfstep.targets import litert_ref

_RULES = litert_ref.RULES
_FORMULAS = {
    "conv": "float",
    "conv_transpose": "float",
    "linear": "float",
    "add": "twenty_bits",
    "sub": "twenty_bits",
    "mul": "float",
    "global_avg_pool": "raw_codes",
    "mean": "raw_codes",
    "softmax": "reciprocal",
}

TARGET = replace(
    litert_ref.TARGET,
    name="litert_xnnpack",
    title="LiteRT with XNNPACK, its default: int8 activations, int8 per-channel weights",
    rules={
        **_RULES,
        **{kind: replace(_RULES[kind], formula=formula) for kind, formula in _FORMULAS.items()},
        "softmax": replace(_RULES["softmax"], formula="reciprocal", refuses=always),
        "leaky_relu": replace(_RULES["leaky_relu"], table=tables.leaky_relu_eight_bits),
    },
    quantize_formula="reciprocal",
    run="halfstep.runtimes.litert:DefaultKernels",
)
