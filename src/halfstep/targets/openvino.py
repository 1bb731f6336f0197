"""OpenVINO's CPU plugin on x86-64 with AVX-512: QDQ models, uint8 activations, int8 weights.

Formulas and bounds were measured on openvino 2026.4.1 (``docs/arithmetic.md``), and are measured
again by ``tests/runtimes``, on a CPU with AVX512-VNNI and without AMX. The runtime folds constants
of neighbours into one another, and how it does so is known for some operations only: for the
others a code may be one step away, which is the target's declared bound.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from halfstep.core.execution import Execution
from halfstep.core.spec import QuantSpec
from halfstep.core.target import OpFacts, OpRule
from halfstep.targets import onnxruntime


def _only_uint8(spec: QuantSpec) -> str:
    signed = "int8 activations with a zero point run in float32"
    return signed if spec.qtype.signed else ""


def _without_padding(facts: OpFacts) -> str:
    """Zero points are not subtracted from what is padded: measured, up to 205 codes apart."""
    if any(margin != (0, 0) for margin in facts.attrs["padding"]):
        return "an average over padding is wrong on codes with a zero point"
    return onnxruntime.RULES["avg_pool"].refuses(facts)


def _product_in_float32(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    """Zero points are subtracted from a product in float32, where digits cancel."""
    del facts
    return _cancelled("the product of its inputs' scales", math.prod(inputs) / output, 2.0**7)


def _sum_in_float32(facts: OpFacts, inputs: Sequence[float], output: float) -> str:
    """The same of a sum, or of one value."""
    del facts
    return _cancelled("an input's scale", max(inputs) / output, 2.0**15)


def _cancelled(what: str, ratio: float, limit: float) -> str:
    """A reason against more steps of the output than half of what float32 counts to."""
    if ratio < limit:
        return ""
    return (
        f"{what} is {ratio:.3g} times the output's, and from {limit:.6g} on the float32 of "
        "OpenVINO has not the digits for it"
    )


_RULES = onnxruntime.RULES
_FUNCTIONS = ("relu", "clamp", "leaky_relu", "sigmoid", "tanh", "gelu", "hardswish", "hardsigmoid")

TARGET = replace(
    onnxruntime.TARGET,
    name="openvino",
    title="OpenVINO on CPUs with AVX-512: QDQ, uint8 activations, one step apart at most",
    rules={
        **_RULES,
        **{kind: replace(_RULES[kind], refuses_scales=_sum_in_float32) for kind in _FUNCTIONS},
        "conv": OpRule(Execution.INTEGER, "fake_quantize"),
        # Never SCALED: a distance of one code says nothing about real values.
        "linear": OpRule(Execution.INTEGER, "folded_scale"),
        "matmul": OpRule(Execution.INTEGER, "float"),
        "add": OpRule(Execution.INTEGER, "rescaled_first", refuses_scales=_sum_in_float32),
        "mul": replace(_RULES["mul"], refuses_scales=_product_in_float32),
        "avg_pool": replace(_RULES["avg_pool"], refuses=_without_padding),
    },
    quantize_formula="fake_quantize",
    activation_bits=(8, 8),
    refuses_activation=_only_uint8,
    bound=1,
    export="halfstep.export.onnx_openvino:export",
    run="halfstep.runtimes.openvino:OpenVinoModel",
)
