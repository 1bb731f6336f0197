"""The engine alone: the canonical integer arithmetic, every width, no artifact.

Rules are those of ONNX Runtime where it has an integer kernel, and integer as well where it has
none; types go from 2 to 16 bits, and weights may have scales of groups. For studying formats that
no runtime here takes.

Accumulators have 48 bits. The engine adds in float64, which is exact below 2^53; 48 bits hold the
products of 16-bit activations with 16-bit weights of 65,536 inputs, and are what LiteRT's kernels
for 16-bit activations requantize (they add in int64 and assume sums below 2^47).
"""

from dataclasses import replace

from halfstep.core.execution import Execution
from halfstep.core.target import OpRule
from halfstep.targets import onnxruntime

_TABLES = ("relu", "clamp", "tanh", "gelu", "hardswish", "hardsigmoid")

TARGET = replace(
    onnxruntime.TARGET,
    name="reference",
    title="the engine: canonical integer arithmetic, 2 to 16 bits, no artifact",
    rules={
        **onnxruntime.RULES,
        "conv_transpose": OpRule(Execution.INTEGER, "float"),
        "softmax": replace(onnxruntime.RULES["softmax"], formula="dequantized"),
        **{kind: OpRule(Execution.INTEGER) for kind in _TABLES},
    },
    activation_bits=(2, 16),
    weight_bits=(2, 16),
    accumulator_bits=48,
    weight_groups=True,
    artifact=None,
    export=None,
    run=None,
)
