"""The engine alone: the canonical integer arithmetic, every width, no artifact.

Rules are those of ONNX Runtime where it has an integer kernel, and integer as well where it has
none; types go from 2 to 16 bits. For studying widths that no runtime here takes.
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
    artifact=None,
    export=None,
    run=None,
)
