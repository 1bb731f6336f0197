"""Calibrators: each method against its equation, written out slowly."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, INT8_NARROW, UINT8, QType
from halfstep.errors import CalibrationError, UnknownNameError
from halfstep.quant.calibrators import histogram as histogram_module
from halfstep.quant.calibrators import mse
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.calibrators.ema import Ema
from halfstep.quant.calibrators.entropy import Entropy, best_bins
from halfstep.quant.calibrators.histogram import SIDE, SMALLEST_EXPONENT, Histogram
from halfstep.quant.calibrators.minmax import MinMax
from halfstep.quant.calibrators.mse import FACTORS, Mse
from halfstep.quant.calibrators.percentile import Percentile

INT4 = QType(4)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_outlier(values: torch.Tensor, outlier: float) -> torch.Tensor:
    return torch.cat([values, torch.tensor([outlier])])


def uniform_bins(n_bins: int, per_bin: int = 1) -> torch.Tensor:
    """Positive values, ``per_bin`` in each of the first bins, none at an edge; width 1."""
    return (torch.arange(n_bins) + 0.5).repeat(per_bin)


def range_of(calibrator: Calibrator, *batches: torch.Tensor) -> tuple[Any, Any]:
    for batch in batches:
        calibrator.update(batch)
    return calibrator.range()


def squared_error(values: torch.Tensor, grid: Affine) -> float:
    real = values.numpy()
    return float(np.square(np.float64(grid.dequantize(grid.quantize(real)) - real)).sum())


# Histogram


def counts_by_definition(values: np.ndarray, exponent: int) -> np.ndarray:
    bins = np.trunc(values.astype(np.float64) / 2.0**exponent).astype(np.int64)
    return np.bincount(bins + SIDE - 1, minlength=2 * SIDE - 1)


def histogram_of(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram


@pytest.mark.parametrize("sign", [1, -1])
def test_histogram_counts_edges_and_their_neighbours_exactly(sign):
    edges = np.arange(SIDE, dtype=np.float32)
    up, down = np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges[1:], np.float32(-1))
    values = sign * np.concatenate([edges, up, down])
    histogram = histogram_of(torch.from_numpy(values))
    assert histogram.width == 1
    np.testing.assert_array_equal(histogram.counts, counts_by_definition(values, 0))


@settings(max_examples=60)
@given(
    st_numpy.arrays(
        np.float32,
        st_numpy.array_shapes(max_dims=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_histogram_has_the_narrowest_width_that_fits(values):
    histogram = histogram_of(torch.from_numpy(values))
    largest = float(np.abs(values).max())
    assert largest < SIDE * histogram.width
    assert histogram.exponent == SMALLEST_EXPONENT or largest >= SIDE / 2 * histogram.width
    np.testing.assert_array_equal(
        histogram.counts, counts_by_definition(values.ravel(), histogram.exponent)
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_histogram_of_several_chunks_and_threads_is_exact(threads, monkeypatch):
    monkeypatch.setattr(histogram_module, "CHUNK", 100)
    monkeypatch.setattr(histogram_module, "WORTH_A_THREAD", 300)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    values = normal(1013)
    with torch.inference_mode():
        histogram = histogram_of(values * 1)
    expected = counts_by_definition(values.numpy(), histogram.exponent)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_histogram_magnitudes_fold_both_signs():
    values = torch.tensor([4095.5, 3.0, -3.5, -1.0, 0.2, -0.7, 0.0])
    magnitudes = histogram_of(values).magnitudes
    assert {k: magnitudes[k] for k in np.flatnonzero(magnitudes)} == {0: 3, 1: 1, 3: 2, 4095: 1}


# What all share


@pytest.mark.parametrize("kind", [MinMax, Percentile, Mse])
def test_axis_that_is_not_there_is_an_error(kind):
    with pytest.raises(CalibrationError, match=r"^no axis 2 in shape \(3, 4\)$"):
        kind(INT8, axis=2).update(torch.ones(3, 4))


@pytest.mark.parametrize("kind", [MinMax, Ema])
def test_other_number_of_channels_is_an_error(kind):
    calibrator, other = kind(INT8, axis=0), kind(INT8, axis=0)
    calibrator.update(torch.ones(3, 2))
    other.update(torch.ones(1, 2))
    with pytest.raises(CalibrationError, match=r"^1 channels after 3 channels$"):
        calibrator.update(torch.ones(1, 2))
    with pytest.raises(CalibrationError, match=r"^1 channels after 3 channels$"):
        calibrator.merge(other)


@pytest.mark.parametrize("kind", [Percentile, Mse])
def test_channels_are_looked_at_once(kind):
    calibrator, other = kind(INT8, axis=0), kind(INT8, axis=0)
    calibrator.merge(other)
    other.update(normal(3, 5))
    calibrator.merge(other)
    np.testing.assert_array_equal(calibrator.range(), other.range())
    for again in (lambda: calibrator.update(normal(3, 5)), lambda: calibrator.merge(other)):
        with pytest.raises(
            CalibrationError, match=r"^2 updates: per channel, the .* or use minmax$"
        ):
            again()


def test_entropy_refuses_channels():
    with pytest.raises(
        CalibrationError, match=r"^the entropy calibrator .* found axis 0: for chan"
    ):
        Entropy(INT8, axis=0)


def test_unknown_option_names_the_nearest():
    with pytest.raises(UnknownNameError, match="percentile calibrator 'percentil': did you mean"):
        Percentile(INT8, percentil=99.0)
    with pytest.raises(UnknownNameError, match="option of the minmax calibrator 'momentum': known"):
        MinMax(INT8, momentum=0.5)


# MinMax


@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from([None, 0, 1, 2, -1]),
)
def test_minmax_is_exact(values, axis):
    others = None if axis is None else tuple(a for a in range(3) if a != axis % 3)
    low, high = range_of(MinMax(INT8, axis=axis), torch.from_numpy(values))
    np.testing.assert_array_equal(low, values.min(axis=others))
    np.testing.assert_array_equal(high, values.max(axis=others))


def test_minmax_looks_at_the_tensor_not_at_its_rows():
    low, high = range_of(MinMax(INT8), torch.tensor([[1.0, 2.0], [-3.0, 4.0]]))
    assert (low, high) == (-3, 4)
    assert low.shape == ()


# Ema


def test_ema_is_the_weighted_mean_of_batch_ranges():
    batches = [normal(50, seed=seed) * (seed + 1) for seed in range(6)]
    low, high = range_of(Ema(INT8, momentum=0.7), *batches)
    weights = 0.7 ** np.arange(5, -1, -1)
    assert low == pytest.approx(np.average([b.min() for b in batches], weights=weights), rel=1e-12)
    assert high == pytest.approx(np.average([b.max() for b in batches], weights=weights), rel=1e-12)


def test_ema_of_one_batch_is_its_range():
    batch = normal(50)
    assert range_of(Ema(INT8), batch) == (batch.min(), batch.max())


def test_ema_without_momentum_is_the_last_batch():
    last = normal(50, seed=1)
    assert range_of(Ema(INT8, momentum=0.0), normal(50), last) == (last.min(), last.max())


def test_ema_merges_by_number_of_updates():
    one, three = Ema(INT8), Ema(INT8)
    range_of(one, torch.tensor([0.0, 8.0]))
    range_of(three, *[torch.tensor([-1.0, 4.0])] * 3)
    one.merge(three)
    assert one.range() == (-0.75, 5.0)
    assert one.updates == 4


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_ema_refuses_a_momentum(momentum):
    with pytest.raises(CalibrationError, match=f"^momentum={momentum}: give at least 0"):
        Ema(INT8, momentum=momentum)


# Percentile


@given(
    st_numpy.arrays(np.float32, st.integers(1, 50), elements=st.floats(-100, 100, width=32)).map(
        torch.from_numpy
    ),
    st.lists(st.floats(1, 100), min_size=2, max_size=4),
    st.sampled_from([None, 0]),
)
def test_percentile_grows_up_to_minmax(values, percentiles, axis):
    ranges = [
        range_of(Percentile(INT8, axis=axis, percentile=p), values[None])
        for p in [*sorted(percentiles), 100]
    ]
    lows, highs = np.array(ranges).reshape(len(ranges), 2).T
    assert (np.diff(lows) <= 0).all()
    assert (np.diff(highs) >= 0).all()
    assert (lows[-1], highs[-1]) == (values.min(), values.max())


@pytest.mark.parametrize("percentile", [1, 50, 90, 99.5, 99.99])
def test_percentile_is_that_of_the_magnitudes(percentile):
    values = with_outlier(normal(20000), -8.0)
    low, high = range_of(Percentile(INT8, percentile=percentile), values)
    # Where the tail is sparse, anything between two neighbours is the percentile.
    below, above = (
        np.percentile(values.abs().numpy(), percentile, method=side) for side in ("lower", "higher")
    )
    one_bin = 8 / (SIDE / 2)
    alpha = max(-low, high)
    assert below - one_bin <= alpha <= above + one_bin
    assert (low, high) == (max(-8, -alpha), min(values.max().item(), alpha))


@pytest.mark.parametrize("symmetric", [False, True])
def test_percentile_per_channel_is_that_of_the_values(symmetric):
    weight = normal(3, 4, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    calibrator = Percentile(INT8, axis=0, symmetric=symmetric, percentile=80)
    low, high = range_of(calibrator, weight)
    rows = weight.reshape(3, -1).numpy()
    alpha = np.percentile(np.abs(rows), 80, axis=1)
    np.testing.assert_array_equal(high, np.minimum(alpha, rows.max(axis=1)))
    np.testing.assert_array_equal(low, np.maximum(-alpha, rows.min(axis=1)))


def test_percentile_clips_only_where_values_are():
    assert range_of(Percentile(INT8, percentile=50), torch.arange(1.0, 101.0))[0] == 1
    low, high = range_of(Percentile(INT8, percentile=50), -torch.arange(1.0, 101.0))
    assert low == pytest.approx(-50, abs=1)
    assert high == -1


@pytest.mark.parametrize("percentile", [0, 100.5])
def test_percentile_refuses_what_is_none(percentile):
    with pytest.raises(CalibrationError, match=f"^percentile={percentile}: give more than 0, at m"):
        Percentile(INT8, percentile=percentile)


# Entropy


def divergence_by_definition(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL(P || Q) for one candidate, bin by bin."""
    p = counts[:kept].astype(np.float64)
    p[-1] += counts[kept:].sum()
    group = kept // levels
    q = np.zeros(kept)
    for level in range(levels):
        stop = kept if level == levels - 1 else (level + 1) * group
        inside = slice(level * group, stop)
        filled = counts[inside] > 0
        if filled.any():
            q[inside][filled] = counts[inside].sum() / filled.sum()
    if (q[p > 0] == 0).any():
        return np.inf
    p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
    return float(np.sum(p * np.log(p / q)))


@settings(max_examples=60)
@given(
    st_numpy.arrays(np.int64, st.integers(10, 60), elements=st.integers(0, 9)),
    st.integers(1, 10),
)
def test_entropy_finds_the_smallest_divergence(counts, levels):
    counts[-1] += 1
    kept = best_bins(counts.astype(np.float64), levels)
    divergences = {
        i: divergence_by_definition(counts, i, levels) for i in range(levels, len(counts) + 1)
    }
    assert divergences[kept] == pytest.approx(min(divergences.values()), abs=1e-12)


def test_entropy_of_equal_candidates_keeps_the_widest():
    # One level for all bins: whatever is kept of a uniform histogram is as uniform as its tail.
    assert best_bins(np.array([5.0, 0, 0, 0, 5.0]), 1) == 5
    assert best_bins(np.array([4.0, 4.0, 4.0, 4.0]), 4) == 4


@pytest.mark.parametrize("qtype", [INT8, UINT8, INT4], ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_of_a_uniform_histogram_is_the_largest_value(qtype, symmetric):
    if symmetric and not qtype.signed:
        return
    values = uniform_bins(SIDE - 1)
    assert range_of(Entropy(qtype, symmetric=symmetric), values) == (0.5, SIDE - 1.5)
    both = torch.cat([values, -values])
    assert range_of(Entropy(qtype, symmetric=symmetric), both) == (1.5 - SIDE, SIDE - 1.5)


@pytest.mark.parametrize("values", [normal(20000), normal(20000).relu()], ids=["both", "relu"])
def test_entropy_clips_a_far_outlier(values):
    low, high = range_of(Entropy(INT8), with_outlier(values, 20.0))
    assert 2 < high < 1.2 * values.max().item()
    assert low == max(values.min().item(), -high)


def test_entropy_is_not_led_by_exact_zeros():
    values = normal(20000).relu()
    zeros = torch.zeros(200000)
    assert range_of(Entropy(INT8), values, zeros) == range_of(Entropy(INT8), values)


@pytest.mark.parametrize(
    ("qtype", "symmetric", "values", "levels"),
    [
        (INT8, True, (-1.0, 1.0), 128),
        (INT8_NARROW, True, (-1.0, 1.0), 128),
        (INT8, True, (0.0, 1.0), 128),
        (INT8, False, (-1.0, 1.0), 128),
        (INT8, False, (0.0, 1.0), 256),
        (UINT8, False, (-1.0, 0.0), 256),
        (UINT8, False, (-1.0, 1.0), 128),
        (INT4, True, (-1.0, 1.0), 8),
    ],
)
def test_entropy_levels(qtype, symmetric, values, levels):
    calibrator = Entropy(qtype, symmetric=symmetric)
    calibrator.update(torch.tensor(values))
    assert calibrator.levels == levels


def test_entropy_clips_nothing_where_levels_outnumber_bins():
    values = with_outlier(normal(1000), 20.0)
    assert range_of(Entropy(QType(16)), values) == (values.min(), values.max())


# Mse

MSE_SPECS = [
    pytest.param(qtype, symmetric, id=f"{qtype}{' symmetric' * symmetric}")
    for qtype, symmetric in [
        (INT8, False),
        (INT8, True),
        (UINT8, False),
        (INT4, False),
        (QType(4, narrow=True), True),
        (QType(2), False),
        (QType(16), False),
    ]
]


@pytest.mark.parametrize(("qtype", "symmetric"), MSE_SPECS)
@pytest.mark.parametrize("values", [normal(50000), normal(50000).relu(), -normal(50000).exp()])
def test_mse_error_of_the_histogram_is_that_of_the_values(qtype, symmetric, values):
    calibrator = Mse(qtype, symmetric=symmetric)
    calibrator.update(values)
    low, high = (
        np.array([[float(values.min()), -0.6, 0]]),
        np.array([[float(values.max()), 0.9, 1]]),
    )
    found = calibrator.squared_error(low[0], high[0])
    for error, *ends in zip(found, low[0], high[0], strict=True):
        grid = Affine.from_range(*map(np.asarray, ends), qtype, symmetric=symmetric)
        expected = squared_error(values, grid)
        # An outermost value may be anywhere in its bin.
        one_value = calibrator.histogram.width**2 / 3
        assert error == pytest.approx(expected, rel=0.02, abs=2 * one_value)


@pytest.mark.parametrize(("qtype", "symmetric"), MSE_SPECS)
@pytest.mark.parametrize(
    "values",
    [normal(5000), normal(5000).relu(), with_outlier(normal(5000), 60.0), normal(5000) ** 3 + 2],
    ids=["normal", "relu", "outlier", "skewed"],
)
def test_mse_is_as_good_as_a_dense_search(qtype, symmetric, values):
    calibrator = Mse(qtype, symmetric=symmetric)
    found = [np.atleast_1d(end) for end in range_of(calibrator, values)]
    low, high = (np.atleast_1d(end) for end in range_of(MinMax(qtype), values))
    error = calibrator.squared_error(*found)
    assert error <= calibrator.squared_error(low, high)

    factors = np.geomspace(1 / 256, 1, 150)
    pairs = np.stack(np.meshgrid(factors, factors)).reshape(2, -1)
    if symmetric or values.min() >= 0:
        pairs = np.stack([factors, factors])
    dense = np.minimum(low, 0) * pairs[0], np.maximum(high, 0) * pairs[1]
    best = min(
        calibrator.squared_error(*(end[i : i + 500] for end in dense)).min()
        for i in range(0, pairs.shape[1], 500)
    )
    assert error <= 1.03 * best


@pytest.mark.parametrize(("bits", "step"), [(2, 1.2240), (3, 0.6508), (4, 0.3534)])
def test_mse_of_a_normal_distribution_is_that_of_max_1960(bits, step):
    """J. Max, "Quantizing for minimum distortion", 1960: equal steps, 3, 7 and 15 levels."""
    ranks = (np.arange(20000) + 0.5) / 20000
    values = torch.tensor([NormalDist().inv_cdf(rank) for rank in ranks])
    qtype = QType(bits, narrow=True)
    _, high = range_of(Mse(qtype, symmetric=True), values)
    assert high / qtype.qmax == pytest.approx(step, rel=0.015)


@given(
    st_numpy.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)).map(
        torch.from_numpy
    ),
    st.sampled_from([(INT8, False), (INT4, True), (UINT8, False), (QType(2), False)]),
)
@settings(max_examples=40)
def test_mse_is_never_worse_than_minmax(values, spec):
    qtype, symmetric = spec
    weight = Mse(qtype, axis=0, symmetric=symmetric)
    low, high = range_of(weight, values[None])
    errors = [
        squared_error(values, Affine.from_range(lo, hi, qtype, symmetric=symmetric))
        for lo, hi in [(low[0], high[0]), (values.min().numpy(), values.max().numpy())]
    ]
    assert errors[0] <= errors[1] * (1 + 1e-5)

    tensor = Mse(qtype, symmetric=symmetric)
    found = range_of(tensor, values)
    ends = range_of(MinMax(qtype), values)
    errors = tensor.squared_error(*map(np.array, zip(found, ends, strict=True)))
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(("qtype", "symmetric"), MSE_SPECS)
def test_mse_per_channel_takes_the_best_factor(qtype, symmetric, monkeypatch):
    monkeypatch.setattr(mse, "CHUNK", 1000)  # several groups of candidates
    weight = normal(4, 3, 5, 5) ** 3
    weight[3] = weight[3].abs()
    low, high = range_of(Mse(qtype, axis=0, symmetric=symmetric), weight)
    for channel, found_low, found_high in zip(weight, low, high, strict=True):
        grid = Affine.from_range(found_low, found_high, qtype, symmetric=symmetric)
        ends = float(min(channel.min(), 0)), float(max(channel.max(), 0))
        errors = [
            squared_error(channel, Affine.from_range(*candidate, qtype, symmetric=symmetric))
            for candidate in (np.multiply(ends, factor) for factor in FACTORS)
        ]
        # A symmetric grid is cut at the same magnitude on both sides, not at the same share.
        assert squared_error(channel, grid) <= min(errors) * (1.02 if symmetric else 1 + 1e-5)


@pytest.mark.parametrize("axis", [None, 0])
def test_mse_of_a_symmetric_range_cuts_both_sides_alike(axis):
    values = with_outlier(normal(5000), 40.0)[None]
    low, high = range_of(Mse(QType(3), axis=axis, symmetric=True), values)
    assert high < 10
    assert low == max(-high, values.min().item())


# What one calibrator saw, read by another


HISTOGRAMS = [Percentile, Entropy, Mse]


def watched(kind: type[Calibrator], **spec: Any) -> Calibrator:
    calibrator = kind(INT8, **spec)
    for seed in (0, 1):
        calibrator.update(with_outlier(normal(4000, seed=seed), 9.0))
    return calibrator


@pytest.mark.parametrize("watcher", HISTOGRAMS)
@pytest.mark.parametrize("reader", [MinMax, *HISTOGRAMS])
@pytest.mark.parametrize(("qtype", "symmetric"), [(INT4, False), (INT8_NARROW, True)])
def test_adopting_is_as_good_as_watching(watcher, reader, qtype, symmetric):
    seen = watched(watcher)
    read = reader(qtype, symmetric=symmetric).adopt(seen)
    own = reader(qtype, symmetric=symmetric)
    for seed in (0, 1):
        own.update(with_outlier(normal(4000, seed=seed), 9.0))
    assert read.range() == own.range()
    read.update(torch.tensor([100.0]))  # what follows is its own
    assert float(seen.high) == 9.0
    assert seen.range() == watched(watcher).range()


def test_adopting_keeps_the_options_of_the_reader():
    seen = watched(Percentile)
    narrow, wide = (Percentile(INT8, percentile=p).adopt(seen) for p in (90.0, 100.0))
    assert narrow.range()[1] < wide.range()[1] == 9.0


def test_a_moving_average_is_adopted_with_its_momentum_only():
    seen = watched(Ema, momentum=0.5)
    assert Ema(INT4, momentum=0.5).adopt(seen).range() == seen.range()
    with pytest.raises(CalibrationError, match="asked for a new calibrator"):
        Ema(INT4).adopt(seen)


@pytest.mark.parametrize(
    ("reader", "watcher"),
    [
        (Mse(INT8), watched(MinMax)),
        (watched(MinMax), watched(MinMax)),
        (MinMax(INT8, axis=0), watched(MinMax)),
        (Percentile(INT8, axis=0), Percentile(INT8, axis=0)),
    ],
)
def test_what_cannot_be_adopted_is_refused(reader, watcher):
    with pytest.raises(CalibrationError, match=r"cannot take over what .* saw: asked for a new"):
        reader.adopt(watcher)
