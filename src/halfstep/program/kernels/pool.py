"""Pooling over windows of (N, C, *spatial), and over all of space."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from halfstep.core.pooling import AVERAGE
from halfstep.program.formulas import FORMULAS
from halfstep.program.kernels.copies import padded
from halfstep.program.kernels.setup import Array, Setup, Step


def windows(setup: Setup, x: Array, fill: float, beyond: float) -> Iterator[Array]:
    """For each kernel tap, the values that it sees, (N, C, *out) each.

    Args:
        setup: of the operation.
        x: (N, C, *spatial).
        fill: the value of the padding.
        beyond: the value behind it, which only the last windows with ``ceil_mode`` see.
    """
    attrs, sizes = setup.attrs, setup.out.shape[2:]
    dilation = attrs.get("dilation", (1,) * len(sizes))
    x = padded(setup.xp, x, attrs["padding"], fill)
    spans = [
        s * (size - 1) + d * (k - 1) + 1
        for s, size, d, k in zip(attrs["stride"], sizes, dilation, attrs["kernel"], strict=True)
    ]
    missing = [max(span - size, 0) for span, size in zip(spans, x.shape[2:], strict=True)]
    x = padded(setup.xp, x, [(0, size) for size in missing], beyond)
    for tap in itertools.product(*map(range, attrs["kernel"])):
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, dilation, attrs["stride"], sizes, strict=True)
        )
        yield x[(slice(None), slice(None), *window)]


def max_pool(setup: Setup) -> Step:
    """The largest code of each window; padding never wins. Works on real values as well."""
    grid = setup.program.tensor(setup.op.inputs[0]).grid
    lowest = -np.inf if grid is None else grid.qtype.qmin

    def run(x: Array) -> Array:
        first, *others = windows(setup, x, lowest, lowest)
        for values in others:
            first = setup.xp.maximum(first, values)
        return first

    return run


def avg_pool(setup: Setup) -> Step:
    """The mean of each window, by a formula for its real values, its codes, or a whole mean."""
    if setup.op.formula not in AVERAGE:
        return _mean_of_codes(setup)
    formula, out = AVERAGE[setup.op.formula], setup.out_grid
    counts = window_counts(setup)

    def run(x: Array) -> Array:
        values = windows(setup, setup.dequantize(0, x), 0.0, 0.0)
        return setup.saturate(formula(values, counts, out.scale, int(out.zero_point)))

    return run


def _mean_of_codes(setup: Setup) -> Step:
    """Windows that average another number of values have another multiplier."""
    formula, xp = FORMULAS[setup.op.kind][setup.op.formula or ""], setup.xp
    grid, out = setup.grid(0), setup.out_grid
    zeros = int(grid.zero_point), int(out.zero_point)
    counts = xp.astype(window_counts(setup), xp.int64)
    present = sorted({int(count) for count in xp.reshape(counts, (-1,))})

    def run(x: Array) -> Array:
        steps = xp.astype(x, xp.int64) - zeros[0]
        total = sum(windows(setup, steps, 0, 0))
        first, *others = (formula(total, n, grid.scale, out.scale, *zeros) for n in present)
        for count, codes in zip(present[1:], others, strict=True):
            first = xp.where(counts == count, codes, first)
        return setup.saturate(first)

    return run


def window_counts(setup: Setup) -> Array:
    """How many values each window averages, float32, (1, 1, *out) or of one element."""
    if setup.attrs["divisor"]:
        return setup.constant([setup.attrs["divisor"]], "float32")
    sizes = setup.program.tensor(setup.op.inputs[0]).shape[2:]
    inside = setup.constant(np.ones((1, 1, *sizes)), "float32")
    return sum(windows(setup, inside, float(setup.attrs["count_include_pad"]), 0.0))


def global_avg_pool(setup: Setup) -> Step:
    """The mean over all of space, axes kept: (N, C, 1, ...)."""
    return _total_over(setup, range(2, len(setup.out.shape)), keepdims=True)


def mean(setup: Setup) -> Step:
    """The mean over some axes."""
    return _total_over(setup, setup.attrs["axes"], setup.attrs["keepdim"])


def sum_(setup: Setup) -> Step:
    """The sum over some axes: the mean's formula without its division."""
    return _total_over(setup, setup.attrs["axes"], setup.attrs["keepdim"], divided=False)


def _total_over(setup: Setup, axes: Sequence[int], keepdims: bool, divided: bool = True) -> Step:
    formula, xp = FORMULAS[setup.op.kind][setup.op.formula or ""], setup.xp
    grid, out = setup.grid(0), setup.out_grid
    zeros = int(grid.zero_point), int(out.zero_point)

    def run(x: Array) -> Array:
        count = int(np.prod([x.shape[axis] for axis in axes]))
        total = xp.sum(x, axis=tuple(axes), keepdims=keepdims, dtype=xp.int64)
        steps = total - count * zeros[0]
        share = count if divided else 1
        return setup.saturate(formula(steps, share, grid.scale, out.scale, *zeros))

    return run
