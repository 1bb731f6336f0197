"""Functions of one value: to the last bit those of ONNX Runtime, and close to the textbook's."""

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper

from halfstep.functions import TABLES, erf
from tests.broken import functions as broken

Array = NDArray[Any]

# name -> (function, attributes, ONNX operation, its attributes, torch function)
FUNCTIONS: dict[str, tuple[Callable[..., Array], dict[str, Any], str, dict[str, Any], Any]] = {
    "relu": (TABLES["relu"], {}, "Relu", {}, F.relu),
    "leaky_relu": (
        TABLES["leaky_relu"],
        {"slope": 0.01},
        "LeakyRelu",
        {"alpha": 0.01},
        lambda x: F.leaky_relu(x, 0.01),
    ),
    "sigmoid": (TABLES["sigmoid"], {}, "Sigmoid", {}, torch.sigmoid),
    "tanh": (TABLES["tanh"], {}, "Tanh", {}, torch.tanh),
    "erf": (erf, {}, "Erf", {}, torch.erf),
    "gelu": (
        TABLES["gelu"],
        {"approximate": "none"},
        "Gelu",
        {"approximate": "none"},
        F.gelu,
    ),
    "gelu by tanh": (
        TABLES["gelu"],
        {"approximate": "tanh"},
        "Gelu",
        {"approximate": "tanh"},
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "hardsigmoid": (
        TABLES["hardsigmoid"],
        {},
        "HardSigmoid",
        {"alpha": 1 / 6, "beta": 0.5},
        F.hardsigmoid,
    ),
    "hardswish": (TABLES["hardswish"], {}, "HardSwish", {}, F.hardswish),
}


def values() -> Array:
    """All sizes that occur, many of each, and the ends of every clamp."""
    rng = np.random.default_rng(0)
    sizes = [rng.normal(0, deviation, 3000) for deviation in (1e-3, 0.1, 0.5, 1, 2, 5, 20)]
    ends = [0.0, -0.0, 1, 3, 6, 9, 18, 0.921875, 3.925, 1e-42, 1e30, 3e38]
    return np.concatenate([*sizes, ends, np.negative(ends)]).astype(np.float32)


def in_runtime(operation: str, attributes: dict[str, Any], x: Array) -> Array:
    graph = helper.make_graph(
        [helper.make_node(operation, ["x"], ["y"], **attributes)],
        "function",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


def assert_bits_are_the_runtimes(name: str, function: Callable[..., Array]) -> None:
    """Law: every value has the runtime's bits, wherever it stands in a vector register."""
    _, mine, operation, theirs, _ = FUNCTIONS[name]
    x = values()
    for part in (x, x[:1], x[-7:], x[5:38]):
        found = function(part, **mine)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, in_runtime(operation, theirs, part), f"{name} bits")


@pytest.mark.runtime
@pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_are_those_of_the_runtime(name: str) -> None:
    assert_bits_are_the_runtimes(name, FUNCTIONS[name][0])


@pytest.mark.runtime
@pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only")
@pytest.mark.parametrize("name", broken.FUNCTION_SPECIMENS)
def test_a_function_that_is_nearly_right_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} bits"):
        assert_bits_are_the_runtimes(name, broken.FUNCTION_SPECIMENS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_close_to_the_definition(name: str) -> None:
    function, attributes, _, _, definition = FUNCTIONS[name]
    x = values()
    exact = definition(torch.from_numpy(x.astype(float))).numpy()
    np.testing.assert_allclose(function(x, **attributes), exact, rtol=1e-6, atol=1e-6)


def test_clamp_has_one_end_or_two() -> None:
    x = np.float32([-2, 0.5, 7])
    for low, high in ((0.0, 6.0), (None, 6.0), (0.0, None)):
        np.testing.assert_array_equal(TABLES["clamp"](x, low=low, high=high), x.clip(low, high))
        assert TABLES["clamp"](x, low=low, high=high).dtype == np.float32
