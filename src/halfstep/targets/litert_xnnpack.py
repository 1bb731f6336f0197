"""LiteRT as users open it: XNNPACK, and optimized kernels for what that does not take.

The file is that of ``litert_ref``; the formulas are not. Measured on ai-edge-litert 2.3 on x86-64
(``docs/arithmetic.md``), and measured again by ``tests/runtimes``. XNNPACK takes convolutions,
linear layers, additions, subtractions, products, means, moves of codes and some functions, and the
matrix products of activations whose second operand has zero point 0; other matrix products,
averages, softmax, GELU and hard-swish run on LiteRT's own kernels, which for these compute what the
table says.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from halfstep.core import tables
from halfstep.core.target import OpFacts, always
from halfstep.targets import litert_ref

# Ratios of scales that XNNPACK takes: the first to below the second. LiteRT's optimized kernels
# run what it does not take, by formulas that were not found.
_OF_A_SUM = (2.0**-10, 2.0**8)
_OF_A_PRODUCT = (2.0**-16, 2.0**8)
# It does not even open a file with more.
_LARGEST_MULTIPLIER = 2.0**8
# An int8 less its zero point, times an int8.
_LARGEST_PRODUCT = 255 * 128
# The zero point is added to an int32.
_WRAPPING = 2.0**31 - 2**8


def _sum_of_near_scales(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    del facts
    ratios = [np.float32(scale) / np.float32(output) for scale in inputs]
    return _refusal([float(ratio) for ratio in ratios], _OF_A_SUM, "an input's scale")


def _product_of_near_scales(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    del facts
    ratio = _multiplier(inputs, output)
    return _refusal([ratio], _OF_A_PRODUCT, "the product of its inputs' scales")


def _small_multiplier(facts: OpFacts, operands: Sequence[float], output: float) -> str:
    ratio = _multiplier(operands, output)
    limits = (0.0, _LARGEST_MULTIPLIER)
    refusal = _refusal([ratio], limits, "the product of its scales of input and weight")
    return refusal or _fits_an_int32(facts, operands, output)


def _fits_an_int32(facts: OpFacts, operands: Sequence[float], output: float) -> str:
    """It rounds to an int32, and wraps around where that is not the nearest number any more."""
    factor = facts.attrs.get("alpha", 1.0)
    largest = _multiplier(operands, output) * factor * facts.terms * _LARGEST_PRODUCT
    if largest < _WRAPPING:
        return ""
    return (
        f"its sums of {facts.terms} products may be {largest:.3g} steps of the output, and XNNPACK "
        f"wraps around at {_WRAPPING:.3g}"
    )


def _multiplier(operands: Sequence[float], output: float) -> float:
    first, second = (np.float32(scale) for scale in operands)
    return float(first * second / np.float32(output))


def _refusal(ratios: Sequence[float], limits: tuple[float, float], what: str) -> str:
    low, high = limits
    outside = [ratio for ratio in ratios if not low <= ratio < high]
    if not outside:
        return ""
    return (
        f"{what} is {outside[0]:.3g} times the output's, and XNNPACK takes {low:.3g} to below "
        f"{high:.3g}"
    )


_RULES = litert_ref.RULES
_FORMULAS = {
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
        **{
            kind: replace(_RULES[kind], formula="float", refuses_scales=_small_multiplier)
            for kind in ("conv", "conv_transpose", "linear")
        },
        "add": replace(_RULES["add"], formula="twenty_bits", refuses_scales=_sum_of_near_scales),
        "sub": replace(_RULES["sub"], formula="twenty_bits", refuses_scales=_sum_of_near_scales),
        "mul": replace(_RULES["mul"], formula="float", refuses_scales=_product_of_near_scales),
        "matmul": replace(
            _RULES["matmul"], symmetric_formula="float", refuses_scales=_fits_an_int32
        ),
        "softmax": replace(_RULES["softmax"], formula="reciprocal", refuses=always),
        "leaky_relu": replace(_RULES["leaky_relu"], table=tables.leaky_relu_eight_bits),
    },
    quantize_formula="reciprocal",
    run="halfstep.runtimes.litert:DefaultKernels",
)
