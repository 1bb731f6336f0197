"""TensorRT's explicit quantization: the form of the file is checked, its arithmetic is not.

TensorRT needs a GPU and its own builder, and runs nowhere that Halfstep is tested. The form follows
its documentation: int8 with zero point 0 on both sides, scales of weights for each output channel,
float32 biases. The formulas below let the engine simulate a program, as ONNX Runtime would compute
the file without fusions; what TensorRT's kernels round differently is not known here.
"""

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, INT8_NARROW
from halfstep.core.spec import QuantSpec
from halfstep.core.target import OpRule, Target
from halfstep.targets import onnxruntime

_FLOAT = "TensorRT's documentation names no int8 form of it"
_COPIES = ("reshape", "transpose", "slice", "concat", "expand", "upsample_nearest", "max_pool")


def _only_int8(spec: QuantSpec) -> str:
    return "" if spec.qtype.signed else "codes are int8"


TARGET = Target(
    name="tensorrt",
    title="TensorRT's explicit quantization: int8 symmetric; form checked, arithmetic unverified",
    rules={
        "conv": OpRule(Execution.INTEGER, "float"),
        "conv_transpose": OpRule(Execution.INTEGER, "float"),
        "linear": OpRule(Execution.INTEGER, "float", scaled="product"),
        "matmul": OpRule(Execution.INTEGER, "float", scaled="product"),
        "add": OpRule(Execution.INTEGER, "dequantized"),
        "avg_pool": onnxruntime.RULES["avg_pool"],
        "global_avg_pool": OpRule(Execution.INTEGER, "divided_scale"),
        **{kind: OpRule(Execution.COPY) for kind in _COPIES},
        **{
            kind: OpRule(Execution.FLOAT, reason=_FLOAT)
            for kind in onnxruntime.RULES
            if kind not in (*_COPIES, "conv", "conv_transpose", "linear", "matmul", "add")
            and kind not in ("avg_pool", "global_avg_pool")
        },
    },
    activation=INT8,
    weight=INT8_NARROW,
    activation_bits=(8, 8),
    weight_bits=(8, 8),
    symmetric_activations=True,
    refuses_activation=_only_int8,
    artifact="model.onnx",
    export="halfstep.export.onnx_tensorrt:export",
)
