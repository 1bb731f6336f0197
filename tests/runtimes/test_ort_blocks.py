"""What ONNX Runtime does with a scale for each block of weights: no integer kernel, and no secret.

Blocks of 4- or 8-bit weights in front of a float matrix product become one kernel, which by default
rounds the activations to 8 bits while it runs. The file cannot say otherwise, only the session can.
This is why the target ``onnxruntime`` refuses groups (``docs/number-formats.md``).
"""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
]
INPUTS, OUTPUTS, BLOCK = 64, 48, 32
LEVEL = "session.qdq_matmulnbits_accuracy_level"
CODES = np.random.default_rng(0).integers(-8, 8, (INPUTS, OUTPUTS)).astype(np.int8)
SCALES = np.random.default_rng(1).uniform(0.01, 0.02, (INPUTS // BLOCK, OUTPUTS)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(20, INPUTS)).astype(np.float32)
REAL = CODES * SCALES.repeat(BLOCK, axis=0)


def packed(bits: int) -> bytes:
    """Codes as ONNX stores them: two 4-bit codes a byte, the first in the low half."""
    if bits == 8:
        return CODES.tobytes()
    low, high = CODES.reshape(-1, 2).astype(np.uint8).T & 15
    return (low | high << 4).tobytes()


def model(bits: int) -> bytes:
    """Blocks of weights, dequantized, in front of a matrix product."""
    kind = {4: TensorProto.INT4, 8: TensorProto.INT8}[bits]
    weight = helper.make_tensor("w", kind, CODES.shape, packed(bits), raw=True)
    scale = helper.make_tensor("s", TensorProto.FLOAT, SCALES.shape, SCALES.ravel())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["real"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])]
        for name, size in (("x", INPUTS), ("y", OUTPUTS))
    ]
    graph = helper.make_graph(nodes, "blocks", *ends, [weight, scale])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    made.ir_version = 10
    onnx.checker.check_model(made)
    return made.SerializeToString()


def run(bits: int, folder: Path, level: int | None = None) -> tuple[list[str], float]:
    """The kernels, and the largest error of an output in shares of the largest output."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 3
    if level is not None:
        options.add_session_config_entry(LEVEL, str(level))
    session = onnxruntime.InferenceSession(model(bits), options, ["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load(str(folder / "fused.onnx")).graph.node]
    wanted = X.astype(np.float64) @ REAL
    (found,) = session.run(None, {"x": X})
    return kernels, float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_one_float_kernel_that_rounds_activations(bits: int, tmp_path: Path) -> None:
    kernels, error = run(bits, tmp_path)
    assert kernels == ["MatMulNBits"]
    assert 1e-3 < error < 2e-2, "activations are rounded to 8 bits"


@pytest.mark.parametrize("bits", [4, 8])
def test_an_option_of_the_session_keeps_activations_float(bits: int, tmp_path: Path) -> None:
    kernels, error = run(bits, tmp_path, level=1)
    assert kernels == ["MatMulNBits"]
    assert error < 1e-6
