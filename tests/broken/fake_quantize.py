"""Formulas of OpenVINO that are nearly right."""

from typing import Any

import numpy as np

from halfstep.core.fake_quantize import ends, fake_quantize, line

F = np.float32


def two_roundings(real: Any, scale: Any, zero_point: int) -> Any:
    """The product is rounded before the offset is added."""
    slope, offset = line(*ends(scale, zero_point))
    return np.rint((real * slope).astype(F) + offset)


def exact_ends(real: Any, scale: Any, zero_point: int) -> Any:
    """Slope and offset are those of the grid, not of its rounded ends."""
    slope = np.full_like(real, F(1) / F(scale))
    return np.rint(real * slope + F(zero_point))


def double_slope(real: Any, scale: Any, zero_point: int) -> Any:
    """Slope and offset in float64, rounded once."""
    low, high = (np.float64(end) for end in ends(scale, zero_point))
    slope, offset = 255 / (high - low), -low * 255 / (high - low)
    return np.rint((real.astype(np.float64) * F(slope) + F(offset)).astype(F))


FAKE_QUANTIZE = {
    "two_roundings": two_roundings,
    "exact_ends": exact_ends,
    "double_slope": double_slope,
}


def bias_in_the_sum(acc: Any, bias: Any, si: Any, sw: Any, so: Any, zero_point: int) -> Any:
    """The bias is added to the integers."""
    scale = F(si) * F(sw)
    return fake_quantize((acc + np.rint(bias / scale)).astype(F) * scale, so, zero_point)


def fused_bias(acc: Any, bias: Any, si: Any, sw: Any, so: Any, zero_point: int) -> Any:
    """Product and bias are rounded once."""
    exact = acc.astype(np.float64) * np.float64(F(si) * F(sw)) + np.float64(bias)
    return fake_quantize(exact.astype(F), so, zero_point)


SUM_AND_BIAS = {"bias_in_the_sum": bias_in_the_sum, "fused_bias": fused_bias}
