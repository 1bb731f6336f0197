"""Softmax of codes."""

from array_api_compat import array_namespace

from halfstep.program.kernels.call import Array, Call


def softmax(call: Call) -> Array:
    """ONNX Runtime: float32 softmax of the real values, then a quantize."""
    return call.quantize(float_softmax(call.dequantize(0), call.op.attrs["axis"]))


def float_softmax(x: Array, axis: int) -> Array:
    """Softmax along ``axis``, shifted by the maximum."""
    xp = array_namespace(x)
    powers = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)
