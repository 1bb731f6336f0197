"""ONNX Runtime on x86-64 with VNNI: QDQ models, uint8 activations, int8 weights.

Every formula and every fusion here was measured on onnxruntime 1.32 (``docs/arithmetic.md``) and
is measured again by ``tests/runtimes``. CPUs with AVX2 but without VNNI saturate the pair sums of
uint8 x int8 products and are not this target, but ``onnxruntime_any``.
"""

import math
from collections.abc import Sequence

import numpy as np

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8_NARROW, UINT8
from halfstep.core.target import OpFacts, OpRule, Target

_FLOAT_KERNEL = "ONNX Runtime has no integer kernel for it"


def _plain_average(facts: OpFacts) -> str:
    own = facts.attrs["divisor"] is not None
    return "an average with a divisor of its own has no kernel" if own else ""


def _no_new_values(facts: OpFacts) -> str:
    new = facts.attrs["mode"] == "constant" and facts.attrs["value"] != 0
    return "padding with a value other than zero adds one that the grid may not hold" if new else ""


def _multiplier_in_range(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    """The kernel ends with an error, when it runs, for other multipliers."""
    count = math.prod(facts.shapes[0][2:])
    multiplier = float(np.float32(inputs[0]) / (np.float32(output) * np.float32(count)))
    low, high = _MEAN_MULTIPLIERS
    if low <= multiplier < high:
        return ""
    return (
        f"its input's scale over {count} values is {multiplier:.3g} times the output's, and ONNX "
        f"Runtime takes {low:.3g} to below {high:.3g}"
    )


_MEAN_MULTIPLIERS = (2.0**-32, 2.0**8)
_INTEGER, _COPY = Execution.INTEGER, Execution.COPY
_BETWEEN = OpRule(Execution.DEQUANTIZED, reason=f"{_FLOAT_KERNEL}: float32 between codes")

# What only moves codes has no arithmetic: other targets share these rules.
COPIES = {
    "pad": OpRule(_COPY, refuses=_no_new_values),
    **dict.fromkeys(
        (
            "max_pool",
            "reshape",
            "transpose",
            "slice",
            "concat",
            "minimum",
            "expand",
            "upsample_nearest",
            "embedding",
        ),
        OpRule(_COPY),
    ),
}

# Functions that every artifact holds as tables.
LOOKED_UP = dict.fromkeys(("abs", "elu", "softplus", "mish", "log_sigmoid"), OpRule(_INTEGER))
RULES = {
    **COPIES,
    "conv": OpRule(_INTEGER, "float"),
    "linear": OpRule(_INTEGER, "float", scaled="product"),
    "matmul": OpRule(_INTEGER, "float", scaled="product"),
    "add": OpRule(_INTEGER, "fused"),
    "mul": OpRule(_INTEGER, "offset_inside"),
    "sub": OpRule(Execution.DEQUANTIZED, "dequantized", f"{_FLOAT_KERNEL}: float32 between codes"),
    "avg_pool": OpRule(_INTEGER, "dequantized", refuses=_plain_average),
    "global_avg_pool": OpRule(_INTEGER, "divided_scale", refuses_scales=_multiplier_in_range),
    "softmax": OpRule(_INTEGER, "table", output_calibrator="unit_interval"),
    "sigmoid": OpRule(_INTEGER),
    "leaky_relu": OpRule(_INTEGER),
    **LOOKED_UP,
    **dict.fromkeys(("relu", "clamp", "tanh", "gelu", "hardswish", "hardsigmoid"), _BETWEEN),
    **{
        kind: OpRule(Execution.FLOAT, reason=_FLOAT_KERNEL)
        for kind in (
            "conv_transpose",
            "prelu",
            "layer_norm",
            "mean",
            "sum",
            "upsample_linear",
            "div",
        )
    },
}

TARGET = Target(
    name="onnxruntime",
    title="ONNX Runtime, x86-64 with VNNI: QDQ, uint8 activations, int8 per-channel weights",
    rules=RULES,
    activation=UINT8,
    weight=INT8_NARROW,
    activation_bits=(2, 8),
    weight_bits=(2, 8),
    artifact="model.onnx",
    export="halfstep.export.onnx_qdq:export",
    run="halfstep.runtimes.ort:OnnxRuntimeModel",
)
