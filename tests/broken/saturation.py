"""Pairs, bounds and repairs that are nearly right: laws of saturation must reject each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.program.pairs import in_pairs, pair_sums
from halfstep.quant.rounding.lattice import Codes
from halfstep.quant.rounding.pair_limit import exceeds, limited

Array = NDArray[Any]

# Orders of a weight: each takes (outputs, inputs, *kernel) and gives (outputs, pairs, 2).


def _channels_first(weight: Array) -> Array:
    return in_pairs(weight.reshape(len(weight), -1))


def _second_with_third(weight: Array) -> Array:
    rows = in_pairs(weight).reshape(len(weight), -1)
    return np.pad(rows, ((0, 0), (1, 1))).reshape(len(rows), -1, 2)


def _each_position_alone(weight: Array) -> Array:
    """An odd number of channels filled up at each kernel position."""
    if weight.shape[1] % 2:
        weight = np.concatenate([weight, np.zeros_like(weight[:, :1])], axis=1)
    return in_pairs(weight)


ORDER_SPECIMENS: dict[str, Callable[[Array], Array]] = {
    "channels first": _channels_first,
    "second with third": _second_with_third,
    "each position alone": _each_position_alone,
}


# Bounds of the sums of pairs: each takes what ``pair_sums`` does.


def _of_steps(program: Any, op: Any, ranges: Any) -> Any:
    zero = int(program.grid("x").zero_point)
    moved = {**ranges, "x": tuple(code - zero for code in ranges["x"])}
    return pair_sums(program, op, moved)


def _of_the_largest_code(program: Any, op: Any, ranges: Any) -> Any:
    return pair_sums(program, op, {**ranges, "x": (0, 255)})


def _of_one_sign(program: Any, op: Any, ranges: Any) -> Any:
    highest = pair_sums(program, op, ranges)[1]
    return -highest, highest


def _smaller(program: Any, op: Any, ranges: Any) -> Any:
    lowest, highest = pair_sums(program, op, ranges)
    return lowest, highest - 1


SUM_SPECIMENS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "of steps": _of_steps,
    "of the largest code": _of_the_largest_code,
    "of one sign": _of_one_sign,
    "one too small": _smaller,
}


# Roundings of pairs: each takes steps, codes and the limit.


def _halves(steps: Array, codes: Codes, limit: int) -> Array:
    found = codes.nearest(steps)
    found[exceeds(found, limit)] = np.sign(found[exceeds(found, limit)]) * (limit // 2)
    return found


def _keeps_the_larger(steps: Array, codes: Codes, limit: int) -> Array:
    found = codes.nearest(steps)
    over = exceeds(found, limit)
    sign, size = np.sign(found[over]), np.abs(found[over])
    first = np.where(size[:, 0] >= size[:, 1], size[:, 0], limit - size[:, 1])
    found[over] = sign * np.stack([first, limit - first], axis=-1)
    return found


ROUNDING_SPECIMENS: dict[str, Callable[[Array, Codes, int], Array]] = {
    "no limit": lambda steps, codes, limit: codes.nearest(steps),
    "a limit too large": lambda steps, codes, limit: limited(steps, codes, limit + 1),
    "a limit too small": lambda steps, codes, limit: limited(steps, codes, limit - 1),
    "half for each": _halves,
    "the larger one kept": _keeps_the_larger,
}
