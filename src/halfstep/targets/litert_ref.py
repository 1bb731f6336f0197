"""LiteRT's reference kernels: int8 throughout, gemmlowp's two roundings.

Every formula here was measured on ai-edge-litert 2.3 (``docs/arithmetic.md``) and is measured
again by ``tests/runtimes``. These kernels define the format's arithmetic; microcontroller runtimes
descend from them. Speed is not their purpose.
"""

from collections.abc import Sequence

import numpy as np

from halfstep.core import tables
from halfstep.core.elementwise import common_scale_ratios
from halfstep.core.execution import BATCH, Execution
from halfstep.core.qtype import INT8, INT8_NARROW
from halfstep.core.spec import QuantSpec
from halfstep.core.target import OpFacts, OpRule, Target
from halfstep.targets import onnxruntime

_INTEGER, _FLOAT = Execution.INTEGER, Execution.FLOAT
_LARGEST_ROW = 511
_LEAST_SCORE = 2.0**-26


def _counts_as_asked(facts: OpFacts) -> str:
    """The operator counts no padding, except what an operator of its own adds."""
    if facts.attrs["divisor"] is not None:
        return "an average with a divisor of its own has no kernel"
    if facts.attrs["ceil_mode"]:
        return "an average over windows that reach beyond the padding has no kernel"
    counted = facts.attrs["count_include_pad"] or not any(map(any, facts.attrs["padding"]))
    if counted or all(map(_is_same, facts.shapes[0][2:], *_windows(facts))):
        return ""
    return "an average that leaves out other padding than TensorFlow's 'same' has no kernel"


def _windows(facts: OpFacts) -> tuple[Sequence[int], Sequence[int], Sequence[tuple[int, int]]]:
    return facts.attrs["kernel"], facts.attrs["stride"], facts.attrs["padding"]


def _is_same(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> bool:
    """Whether the padding of one axis is that of the format's mode of this name."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return padding == (total // 2, total - total // 2)


def _within_a_sample(facts: OpFacts) -> str:
    over = any(facts.shapes[0][axis] == BATCH for axis in facts.attrs["axes"])
    return "the file holds one sample, and this is a mean over samples" if over else ""


def _short_rows(facts: OpFacts) -> str:
    length = facts.shapes[0][facts.attrs["axis"]]
    if 0 < length <= _LARGEST_ROW:
        return ""
    return (
        f"its rows have {length} values, and the reference kernel ends the process where "
        f"exponentials add up to more than {_LARGEST_ROW}"
    )


def _small_enough_sum(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    """The last multiplier of a sum has no shift to the left, and the kernel asserts it."""
    del facts
    scales = [np.asarray(scale, np.float32) for scale in (*inputs, output)]
    if common_scale_ratios(*scales)[2] < 1:
        return ""
    return (
        f"an input's scale is {max(inputs) / output:.3g} times the output's, and LiteRT ends the "
        f"process from {2.0**19:.6g} on"
    )


def _scores_in_range(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    """The kernel asserts that its multiplier, 2^26 times the scale of its input, is above 1."""
    del facts, output
    if inputs[0] > _LEAST_SCORE:
        return ""
    return f"its input's scale is {inputs[0]:.3g}, and LiteRT ends the process at 2^-26 and below"


def _no_kernel(what: str) -> OpRule:
    return OpRule(_FLOAT, reason=f"LiteRT {what}: float32 between codes")


RULES = {
    "conv": OpRule(_INTEGER, "double_rounding"),
    "conv_transpose": OpRule(_INTEGER, "double_rounding"),
    "linear": OpRule(_INTEGER, "single_rounding_away"),
    "matmul": OpRule(_INTEGER, "double_rounding_product"),
    "add": OpRule(_INTEGER, "double_rounding", refuses_scales=_small_enough_sum),
    "sub": OpRule(_INTEGER, "double_rounding", refuses_scales=_small_enough_sum),
    "mul": OpRule(_INTEGER, "double_rounding"),
    "avg_pool": OpRule(_INTEGER, "half_away", refuses=_counts_as_asked, one_grid=True),
    "global_avg_pool": OpRule(_INTEGER, "double_rounding"),
    "mean": OpRule(_INTEGER, "double_rounding", refuses=_within_a_sample),
    "softmax": OpRule(
        _INTEGER,
        "fixed_point",
        refuses=_short_rows,
        refuses_scales=_scores_in_range,
        output_calibrator="unit_interval",
    ),
    "sigmoid": OpRule(_INTEGER, output_calibrator="unit_interval", table=tables.sigmoid_rounded),
    "tanh": OpRule(_INTEGER, output_calibrator="signed_unit_interval", table=tables.tanh_rounded),
    "gelu": OpRule(_INTEGER, table=tables.gelu_rounded),
    "relu": OpRule(_INTEGER, table=tables.relu_double_rounding),
    "leaky_relu": OpRule(_INTEGER, table=tables.leaky_relu_double_rounding),
    "hardswish": OpRule(_INTEGER, table=tables.hardswish_sixteen_bits),
    "clamp": OpRule(_INTEGER),
    "hardsigmoid": OpRule(_INTEGER),
    **onnxruntime.LOOKED_UP,
    **onnxruntime.COPIES,
    "prelu": _no_kernel("has integer kernels for it that are not emulated here"),
    "sum": _no_kernel("has integer kernels for it that are not emulated here"),
    "upsample_linear": _no_kernel("has integer kernels for it that are not emulated here"),
    "layer_norm": _no_kernel("has no operator for it"),
    "div": _no_kernel("has no integer kernel for it"),
}


def _only_signed(spec: QuantSpec) -> str:
    return "" if spec.qtype.signed else "its kernels take int8, and no uint8"


TARGET = Target(
    name="litert_ref",
    title="LiteRT, reference kernels: int8 activations, int8 per-channel weights",
    rules=RULES,
    activation=INT8,
    weight=INT8_NARROW,
    activation_bits=(8, 8),
    weight_bits=(2, 8),
    quantize_formula="half_away",
    refuses_activation=_only_signed,
    artifact="model.tflite",
    export="halfstep.export.litert:export",
    run="halfstep.runtimes.litert:ReferenceKernels",
)
