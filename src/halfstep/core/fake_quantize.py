"""OpenVINO's formulas: every code is a point on a line, ``rint(fma(x, slope, offset))``.

OpenVINO reads a quantization as a ``FakeQuantize``: the real values of its lowest and highest code
become a slope and an offset, in float32, and both are rounded again wherever a constant in front
is folded into them. All functions here are for uint8 codes, and leave clamping to the caller.

| formula         | what is put on the line                                                    |
|-----------------|----------------------------------------------------------------------------|
| fake_quantize   | a real value; or a sum of products, scaled, and its bias, as real values   |
| folded_scale    | a sum of products; its scale and its bias are folded into the line         |
| rescaled_first  | two codes, the first one rescaled to the grid of the second                |

Worked example, scale 0.1 and zero point 3: the lowest code is -0.3, the highest 25.2, so the slope
is 255 / 25.5 = 10 and the offset 0.3 * 255 / 25.5 = 3, both up to the roundings of float32.

>>> import numpy as np
>>> line(*ends(np.float32(0.1), 3))
(np.float32(9.999999), np.float32(3.0))
>>> [float(code) for code in fake_quantize(np.float32([-0.3, 0, 0.25, 25.2]), np.float32(0.1), 3)]
[0.0, 3.0, 5.0, 255.0]
"""

from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from halfstep.core.elementwise import fma
from halfstep.core.requant import Array, Scale, like

Real = NDArray[np.float32] | np.float32

_STEPS = np.float32(255)
# Offsets of channels that lie within this of the first one are taken for it.
_SAME_OFFSET = np.float32(0.00005)


def ends(scale: Scale, zero_point: int) -> tuple[Real, Real]:
    """The real values of the codes 0 and 255."""
    low, high = np.float32(0 - zero_point), np.float32(255 - zero_point)
    return np.float32(scale) * low, np.float32(scale) * high


def line(low: Real, high: Real) -> tuple[Real, Real]:
    """Slope and offset that take ``low`` to 0 and ``high`` to 255, in float32."""
    span = high - low
    return _STEPS / span, -low * _STEPS / span


def on_line(x: Array, slope: Real, offset: Real) -> Array:
    """``rint(fma(x, slope, offset))``."""
    xp = array_namespace(x)
    return xp.round(fma(x, like(slope, x, "float32"), like(offset, x, "float32")))


def fake_quantize(real: Array, scale: Scale, zero_point: int) -> Array:
    """Real values to codes."""
    return on_line(real, *line(*ends(scale, zero_point)))


def sum_on_line(x: Array, low: Real, high: Real) -> Array:
    """As ``on_line``, behind a sum of products with one slope.

    Without an offset the kernel is given the reciprocal of the slope as the scale of its output,
    and multiplies by the reciprocal of that.
    """
    slope, offset = line(low, high)
    if offset == 0:
        slope = np.float32(1) / (np.float32(1) / slope)
    return on_line(x, slope, offset)


def sum_and_bias(
    acc: Array, bias: Real, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """``v = f32(f32(f32(acc) * f32(s_in * s_w)) + bias)``, then ``sum_on_line``.

    Args:
        acc: integer-valued sums of products, without the bias.
        bias: real values that broadcast against ``acc``, as do the scales of the weights.
        scale_in: scale of the input.
        scale_weight: scale of the weights, shape () or one that broadcasts against ``acc``.
        scale_out: scale of the output.
        zero_point: the output code of real zero.
    """
    xp = array_namespace(acc)
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    real = xp.astype(acc, xp.float32, copy=False) * like(product, acc, "float32")
    return sum_on_line(real + like(bias, acc, "float32"), *ends(scale_out, zero_point))


def sum_alone(
    acc: Array, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """Without a bias the scales go into the ends of the line: ``f32(end / f32(s_in * s_w))``.

    With scales of channels each one has a slope of its own, the product with which is rounded
    before an offset is added; and the offset is that of the first channel, unless another one
    differs from it by more than 0.00005. Arguments as for ``sum_and_bias``.
    """
    xp = array_namespace(acc)
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    low, high = (end / product for end in ends(scale_out, zero_point))
    acc = xp.astype(acc, xp.float32, copy=False)
    if product.size == 1:
        return sum_on_line(acc, np.ravel(low)[0], np.ravel(high)[0])
    slope, offset = line(low, high)
    first = np.ravel(offset)[0]
    shared = bool(np.all(np.abs(offset - first) < _SAME_OFFSET))
    return xp.round(
        acc * like(slope, acc, "float32") + like(first if shared else offset, acc, "float32")
    )


def folded_sum_and_bias(
    acc: Array, bias: Real, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """``rint(f32(f32(acc * f32(f32(s_in * s_w) * slope)) + f32(f32(bias * slope) + offset)))``.

    Arguments as for ``sum_and_bias``.
    """
    xp = array_namespace(acc)
    slope, offset = line(*ends(scale_out, zero_point))
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32) * slope
    scaled = xp.astype(acc, xp.float32, copy=False) * like(product, acc, "float32")
    return xp.round(scaled + like(bias * slope + offset, acc, "float32"))


def folded_sum(
    acc: Array, zeros: Real, scale_in: Scale, scale_weight: Scale, scale_out: Scale, zero_point: int
) -> Array:
    """Without a bias: the sum of raw codes, on the line through ``f32(end / f32(s_in * s_w)) + Z``.

    Args:
        acc: integer-valued sums of products, zero points subtracted.
        zeros: ``Z``, what was subtracted: the zero point of the input times the sum of the weights.
        scale_in: scale of the input.
        scale_weight: scale of the weights, shape () or one that broadcasts against ``acc``.
        scale_out: scale of the output.
        zero_point: the output code of real zero.
    """
    xp = array_namespace(acc)
    product = np.float32(scale_in) * np.asarray(scale_weight, np.float32)
    slope, offset = line(*(end / product + zeros for end in ends(scale_out, zero_point)))
    raw = xp.astype(acc + like(zeros, acc, "float32"), xp.float32, copy=False)
    return xp.round(raw * like(slope, acc, "float32") + like(offset, acc, "float32"))


def add_rescaled_first(
    a: Array, b: Array, sa: Scale, sb: Scale, sy: Scale, za: int, zb: int, zy: int
) -> Array:
    """``t = f32(f32(f32(a - Z) * f32(sa / sb)) + b)`` on the line with ends ``f32(end / sb)``.

    ``Z = f32(za + f32(f32(zb * sb) / sa))``: both zero points, in steps of the first operand.
    """
    xp = array_namespace(a, b)
    in_steps = np.float32(zb) * np.float32(sb) / np.float32(sa)
    ratio = np.float32(sa) / np.float32(sb)
    a, b = xp.astype(a, xp.float32), xp.astype(b, xp.float32)
    total = (a - like(np.float32(za) + in_steps, a, "float32")) * like(ratio, a, "float32") + b
    return on_line(total, *line(*(end / np.float32(sb) for end in ends(sy, zy))))


QUANTIZE: dict[str, Callable[..., Array]] = {"fake_quantize": fake_quantize}
ADD: dict[str, Callable[..., Array]] = {"rescaled_first": add_rescaled_first}
# Formulas of sums of products that add the bias as a real value, and those without a bias.
WITH_BIAS: dict[str, Callable[..., Array]] = {
    "fake_quantize": sum_and_bias,
    "folded_scale": folded_sum_and_bias,
}
WITHOUT_BIAS: dict[str, Callable[..., Array]] = {"fake_quantize": sum_alone}
# Those without a bias that are told what the zero point of the input took away.
WITH_ZEROS: dict[str, Callable[..., Array]] = {"folded_scale": folded_sum}
