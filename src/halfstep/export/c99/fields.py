"""Fields of the structures in C that several kinds of layers share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.export.c99.draft import Draft
from halfstep.export.c99.numbers import Ratios
from halfstep.program.ir import Op

SPACE = ("height", "width")


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of (1, C, *spatial); what space has in front are more rows."""
    return math.prod(shape[2:-1]), shape[-1], shape[1]


def along(
    pattern: str, names: Sequence[str], values: Sequence[Any], missing: int = 1
) -> dict[str, int]:
    """One field for each of two axes of space; ``missing`` is the value of an axis that is not."""
    both = (missing, *values)[-2:]
    return {pattern.format(name): int(value) for name, value in zip(names, both, strict=True)}


def ratio_arrays(draft: Draft, op: Op, ratios: Ratios) -> dict[str, str]:
    """Fields of a layer that has many ratios: two arrays and their arithmetic."""
    # A shift beyond int8 takes every sum to 0, or to the end of the codes, as its end does.
    shift = np.clip(ratios.shift, -128, 127).astype(np.int8)
    parts: dict[str, NDArray[Any]] = {
        "multiplier": ratios.multiplier.astype(np.int32),
        "shift": shift,
    }
    arrays = {
        key: draft.constant(f"{op.output}/{key}", values, "multipliers")
        for key, values in parts.items()
    }
    return {**arrays, "rounding": ratios.rounding}
