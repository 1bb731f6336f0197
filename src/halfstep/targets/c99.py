"""Plain C99 for bare metal, integers only: sums requantized with the bits of float32 arithmetic.

The float formula of ONNX Runtime and XNNPACK is emulated in integers, so that convolutions, linear
layers and matrix products give the codes of those runtimes on cores without a float unit. Where a
runtime needs float32 between codes, gemmlowp's fixed point stands instead.

Activations are int8 with any zero point, as in CMSIS-NN: the range of a ReLU, whose lowest value
is the zero point, keeps all 256 codes, and an int8 is what ARM's and RISC-V's packed instructions
multiply. Weights take 8, 4, 2 or 1 bits in memory, whichever hold their type.
"""

import math

from halfstep.core.execution import BATCH, Execution
from halfstep.core.normalize import LONGEST_ROW
from halfstep.core.qtype import INT8, INT8_NARROW
from halfstep.core.softmax import INTEGER_ROW
from halfstep.core.target import OpFacts, OpRule, Target
from halfstep.targets import onnxruntime

_INTEGER = Execution.INTEGER
# What has no formula on integers, and what says the same that has one.
_INSTEAD = {
    "prelu": "take leaky_relu, with one constant slope",
    "upsample_linear": "take mode='nearest', or a transposed convolution",
    "div": "take a product with the reciprocal, where that is a constant",
}
# So many steps of a code, each at most 255, add up to less than 2^31.
_MOST_TERMS = (2**31 - 1) // 255


def _whole_batches(facts: OpFacts) -> str:
    """The kernel repeats one matrix for all of the batches, or none."""
    first, second = ([abs(size) for size in shape] for shape in facts.shapes)
    if min(len(first), len(second)) < 2:
        return "a product with a vector has no kernel; give it a second axis"
    outer = [shape[:-2] for shape in (first, second)]
    one = [all(size == 1 for size in sizes) for sizes in outer]
    if outer[0] != outer[1] and not any(one):
        return "a product that repeats a part of its batches has no kernel"
    return ""


def _short_row(facts: OpFacts) -> str:
    length = facts.shapes[0][facts.attrs["axis"]]
    if length == BATCH:
        return "a softmax over the samples of a batch has no kernel"
    long = f"a softmax of {length} values has a sum that 32 bits may not hold"
    return long if length > INTEGER_ROW else ""


def _constant_affine(facts: OpFacts) -> str:
    """Rows of a size whose squares 64 bits hold, and parameters that are constants."""
    sizes = facts.shapes[0][-facts.attrs["n_axes"] :]
    length = BATCH if BATCH in sizes else math.prod(sizes)
    if not 0 < length <= LONGEST_ROW:
        return f"a layer normalization of more than {LONGEST_ROW} values has no kernel"
    return "" if all(facts.constants[1:]) else "its weight or bias is computed, not a parameter"


def _terms_of_a_sample(facts: OpFacts) -> str:
    """A mean or a sum of codes that one sample has, and that 32 bits hold."""
    sizes = [facts.shapes[0][axis] for axis in facts.attrs["axes"]]
    if BATCH in sizes:
        return f"a {facts.kind} over the samples of a batch has no kernel; C runs one at a time"
    few = math.prod(sizes) <= _MOST_TERMS
    return "" if few else f"a {facts.kind} of more than {_MOST_TERMS} values may leave 32 bits"


RULES = {
    **onnxruntime.COPIES,
    **onnxruntime.LOOKED_UP,
    "conv": OpRule(_INTEGER, "float"),
    "conv_transpose": OpRule(_INTEGER, "float"),
    "linear": OpRule(_INTEGER, "float"),
    "matmul": OpRule(_INTEGER, "float", refuses=_whole_batches),
    "add": OpRule(_INTEGER, "double_rounding"),
    "sub": OpRule(_INTEGER, "double_rounding"),
    "mul": OpRule(_INTEGER, "float"),
    "avg_pool": OpRule(_INTEGER, "divided_scale"),
    "global_avg_pool": OpRule(_INTEGER, "divided_scale"),
    "mean": OpRule(_INTEGER, "divided_scale", refuses=_terms_of_a_sample),
    "sum": OpRule(_INTEGER, "divided_scale", refuses=_terms_of_a_sample),
    "layer_norm": OpRule(_INTEGER, "float", refuses=_constant_affine),
    "softmax": OpRule(_INTEGER, "integer", refuses=_short_row, output_calibrator="unit_interval"),
    **{
        kind: OpRule(_INTEGER)
        for kind in (
            "relu",
            "clamp",
            "leaky_relu",
            "sigmoid",
            "tanh",
            "gelu",
            "hardswish",
            "hardsigmoid",
        )
    },
    **{
        kind: OpRule(Execution.FLOAT, reason=f"no formula on integers for it; {instead}")
        for kind, instead in _INSTEAD.items()
    },
}

TARGET = Target(
    name="c99",
    title="plain C99, integers only: the float formula of ONNX Runtime and XNNPACK, emulated",
    rules=RULES,
    activation=INT8,
    weight=INT8_NARROW,
    activation_bits=(2, 8),
    weight_bits=(1, 8),
    integer_only=True,
    artifact="c99",
    export="halfstep.export.c99.writer:export",
    run="halfstep.runtimes.cc:CModel",
    in_memory="halfstep.export.c99.writer:in_memory",
)
