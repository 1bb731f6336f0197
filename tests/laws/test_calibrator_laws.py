"""What every calibrator promises, whatever its method."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.errors import CalibrationError
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.calibrators.ema import Ema
from halfstep.quant.calibrators.entropy import Entropy
from halfstep.quant.calibrators.minmax import MinMax
from halfstep.quant.calibrators.mse import Mse
from halfstep.quant.calibrators.percentile import Percentile
from tests.broken import calibrators as broken

Kind = type[Calibrator]

CALIBRATORS: list[Kind] = [MinMax, Ema, Percentile, broken.Percentile90, Entropy, Mse]
WHOLE_STREAM = [kind for kind in CALIBRATORS if not kind.depends_on_batches]
PER_CHANNEL = [kind for kind in CALIBRATORS if kind.per_channel]
SPECS: list[dict[str, Any]] = [
    {"qtype": INT8},
    {"qtype": UINT8},
    {"qtype": QType(4), "symmetric": True},
]
POW2_SPECS: list[dict[str, Any]] = [
    {"qtype": UINT8, "pow2": True},
    {"qtype": QType(4), "symmetric": True, "pow2": True},
]
# The range of a histogram method is exact to one bin, at most 1/2048 of the largest magnitude.
ONE_BIN = 1 / 2048


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Larger and larger values of both signs, after a zero: batches widen the grid one after the other.
GROWING = torch.cat([torch.zeros(1), 1.1 ** torch.arange(-40.0, 40) * (-1.0) ** torch.arange(80)])
GAUSSIAN = normal(3000)

finite = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda x: x if abs(x) > 2.0**-40 else 0.0)
arrays = st_numpy.arrays(np.float32, st.integers(1, 60), elements=finite).map(torch.from_numpy)
specs = st.sampled_from([*SPECS, *POW2_SPECS])
some = settings(max_examples=40)
every_calibrator = pytest.mark.parametrize("kind", CALIBRATORS)
every_whole_stream = pytest.mark.parametrize("kind", WHOLE_STREAM)
every_per_channel = pytest.mark.parametrize("kind", PER_CHANNEL)
every_spec = pytest.mark.parametrize("spec", [*SPECS, *POW2_SPECS], ids=str)


def seeing(kind: Kind, *batches: torch.Tensor, **spec: Any) -> Calibrator:
    calibrator = kind(**({"qtype": INT8} | spec))
    for batch in batches:
        calibrator.update(batch)
    return calibrator


def range_of(kind: Kind, *batches: torch.Tensor, **spec: Any) -> np.ndarray:
    return np.stack(seeing(kind, *batches, **spec).range())


def split(values: torch.Tensor, cuts: Sequence[int]) -> list[torch.Tensor]:
    ends = sorted({0, len(values), *(cut % len(values) for cut in cuts)})
    return [values[start:end] for start, end in pairwise(ends)]


# Laws


def assert_independent_of_batches(
    kind: Kind, values: torch.Tensor = GROWING, cuts: Sequence[int] = (1, 7, 40), **spec: Any
) -> None:
    whole = range_of(kind, values, **spec)
    batches = split(values, cuts)
    np.testing.assert_array_equal(range_of(kind, *batches, **spec), whole)
    np.testing.assert_array_equal(range_of(kind, *batches[::-1], **spec), whole)


def assert_merges_as_one_stream(
    kind: Kind, values: torch.Tensor = GROWING, cuts: Sequence[int] = (50,), **spec: Any
) -> None:
    workers = [seeing(kind, batch, **spec) for batch in split(values, cuts)]
    workers.append(kind(**({"qtype": INT8} | spec)))  # a worker that got no data
    merged = kind(**({"qtype": INT8} | spec))
    for worker in workers:
        merged.merge(worker)
    np.testing.assert_array_equal(np.stack(merged.range()), range_of(kind, values, **spec))


def assert_scales_exactly(
    kind: Kind, values: torch.Tensor = GAUSSIAN, exponent: int = 9, **spec: Any
) -> None:
    factor = 2.0**exponent
    scaled = range_of(kind, values * factor, **spec)
    np.testing.assert_array_equal(scaled, range_of(kind, values, **spec) * factor)


def assert_scales_to_one_bin(kind: Kind, factor: float = 3.0, **spec: Any) -> None:
    expected = range_of(kind, GAUSSIAN, **spec)
    scaled = range_of(kind, GAUSSIAN * factor, **spec) / factor
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=ONE_BIN * np.abs(expected).max())


def assert_within_what_was_seen(kind: Kind, values: torch.Tensor = GAUSSIAN, **spec: Any) -> None:
    low, high = seeing(kind, values, **spec).range()
    assert low.dtype == high.dtype == np.float64
    assert low.shape == high.shape == ()
    assert min(0.0, values.min().item()) <= low <= high <= max(0.0, values.max().item())


def assert_keeps_a_constant(kind: Kind, constant: float = 0.3, **spec: Any) -> None:
    seen = np.float32(constant)
    low, high = seeing(kind, torch.full((2, 5), constant), **spec).range()
    assert min(0, seen) <= low <= high <= max(0, seen)
    kept = low if constant < 0 else high
    assert abs(kept - seen) <= ONE_BIN * abs(seen)


def assert_refuses(kind: Kind, bad: torch.Tensor, text: str) -> None:
    calibrator = seeing(kind, GAUSSIAN)
    before = np.stack(calibrator.range())
    with pytest.raises(CalibrationError, match=text):
        calibrator.update(bad)
    np.testing.assert_array_equal(np.stack(calibrator.range()), before)
    assert calibrator.updates == 1


def assert_refuses_nan(kind: Kind) -> None:
    assert_refuses(kind, torch.tensor([1.0, torch.nan, 2.0]), r"^non-finite value \(nan\) in a")


def assert_refuses_infinity(kind: Kind) -> None:
    for bad in (torch.inf, -torch.inf):
        text = rf"^non-finite value \({bad}\) in a tensor of 2 values$"
        assert_refuses(kind, torch.tensor([0.0, bad]), text)


def assert_refuses_empty(kind: Kind) -> None:
    assert_refuses(kind, torch.zeros(0, 3), r"^no values in a tensor of shape \(0, 3\)$")


def assert_needs_values(kind: Kind) -> None:
    with pytest.raises(CalibrationError, match="has not seen any values"):
        kind(INT8).range()


def assert_memory_is_bounded(kind: Kind) -> None:
    calibrator = seeing(kind, GAUSSIAN)
    before = n_bytes(calibrator)
    for seed in range(5):
        batch = normal(1000, seed=seed) * 2.0**seed
        alive = weakref.ref(batch)
        calibrator.update(batch)
        del batch
        assert alive() is None
    assert n_bytes(calibrator) == before


def n_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return (
        sum(n_bytes(inner) for inner in vars(value).values()) if hasattr(value, "__dict__") else 0
    )


def assert_leaves_its_input(kind: Kind) -> None:
    values = normal(3, 4, seed=1).requires_grad_()
    before = values.detach().clone()
    range_of(kind, values)
    assert torch.equal(values.detach(), before)
    assert values.requires_grad


def assert_sees_values_not_memory(kind: Kind) -> None:
    values = normal(2, 3, 5, 4)
    expected = range_of(kind, values)
    layouts = [
        values.to(memory_format=torch.channels_last),
        values.double(),
        torch.cat([values, values + 100], dim=3)[..., :4],
        values.permute(3, 1, 0, 2),
    ]
    for layout in layouts:
        np.testing.assert_array_equal(range_of(kind, layout), expected)
    half = values.to(torch.bfloat16)
    np.testing.assert_array_equal(range_of(kind, half), range_of(kind, half.float()))


def assert_merges_its_like_only(kind: Kind) -> None:
    others: list[Calibrator] = [kind(UINT8), kind(INT8, symmetric=True)]
    others += [other(INT8) for other in CALIBRATORS if other is not kind]
    for other in others:
        other.update(GAUSSIAN)
        with pytest.raises(CalibrationError, match=r"^cannot merge .* settings differ$"):
            seeing(kind, GAUSSIAN).merge(other)


def assert_channels_are_independent(kind: Kind, **spec: Any) -> None:
    weight = normal(6, 3, 2, 2) ** 3 * 4.0 ** torch.arange(6).reshape(6, 1, 1, 1)
    weight[1] = 0.0
    weight[2] = weight[2].abs()
    together = range_of(kind, weight, axis=0, **spec)
    alone = [range_of(kind, channel[None], axis=0, **spec) for channel in weight]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))
    for axis in (1, -1):
        moved = weight.movedim(0, axis)
        np.testing.assert_array_equal(range_of(kind, moved, axis=axis, **spec), together)


# The laws hold


@every_whole_stream
@some
@given(values=arrays, cuts=st.lists(st.integers(0, 100), max_size=4), spec=specs)
def test_range_is_independent_of_batches(kind, values, cuts, spec):
    assert_independent_of_batches(kind, values, cuts, **spec)


@every_whole_stream
@every_spec
def test_range_is_independent_of_batches_that_widen_it(kind, spec):
    assert_independent_of_batches(kind, **spec)
    assert_independent_of_batches(kind, GAUSSIAN, (10, 1000, 1001), **spec)


@every_whole_stream
@some
@given(values=arrays, cuts=st.lists(st.integers(0, 100), max_size=3), spec=specs)
def test_merged_workers_equal_one(kind, values, cuts, spec):
    assert_merges_as_one_stream(kind, values, cuts, **spec)


@every_whole_stream
@every_spec
def test_merged_workers_equal_one_when_ranges_differ(kind, spec):
    assert_merges_as_one_stream(kind, **spec)


@every_calibrator
@some
@given(values=arrays, exponent=st.integers(-20, 20), spec=specs)
def test_powers_of_two_scale_the_range_exactly(kind, values, exponent, spec):
    assert_scales_exactly(kind, values, exponent, **spec)


@every_calibrator
@every_spec
def test_powers_of_two_scale_the_range_of_many_values_exactly(kind, spec):
    assert_scales_exactly(kind, **spec)
    assert_scales_exactly(kind, GAUSSIAN.relu(), -7, **spec)


# The entropy of neighbouring candidates is nearly the same: which is the least depends on the bins.
@pytest.mark.parametrize("kind", [kind for kind in CALIBRATORS if kind is not Entropy])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("factor", [3.0, 0.7, 1.37, 5e-5])
def test_other_factors_scale_the_range_to_one_bin(kind, spec, factor):
    assert_scales_to_one_bin(kind, factor, **spec)


@every_calibrator
@some
@given(values=arrays, spec=specs)
def test_range_is_within_what_was_seen(kind, values, spec):
    assert_within_what_was_seen(kind, values, **spec)


@every_calibrator
@every_spec
@pytest.mark.parametrize("values", [GAUSSIAN, GAUSSIAN.relu(), -GAUSSIAN.abs(), GAUSSIAN.abs() + 5])
def test_range_of_many_values_is_within_what_was_seen(kind, spec, values):
    assert_within_what_was_seen(kind, values, **spec)


@every_calibrator
@every_spec
@pytest.mark.parametrize("constant", [0.0, 0.3, -0.3, 1.0, -4.0, 1e-30, 6e30])
def test_constant_is_kept(kind, spec, constant):
    assert_keeps_a_constant(kind, constant, **spec)


@every_calibrator
def test_single_value_is_a_constant(kind):
    low, high = range_of(kind, torch.tensor(3.5))
    assert low in (0, 3.5)
    assert high == 3.5


@every_calibrator
@pytest.mark.parametrize(
    "law",
    [
        assert_refuses_nan,
        assert_refuses_infinity,
        assert_refuses_empty,
        assert_needs_values,
        assert_memory_is_bounded,
        assert_leaves_its_input,
        assert_sees_values_not_memory,
        assert_merges_its_like_only,
    ],
)
def test_law_without_parameters(law, kind):
    law(kind)


@every_per_channel
@every_spec
def test_channels_are_independent(kind, spec):
    assert_channels_are_independent(kind, **spec)


# The laws can fail


@pytest.mark.parametrize(
    ("law", "specimen"),
    [
        (assert_independent_of_batches, broken.UndeclaredAverage),
        (assert_independent_of_batches, broken.MisalignedBins),
        (assert_independent_of_batches, broken.LosesCountsWhenGrowing),
        (assert_merges_as_one_stream, broken.KeepsTheLastWorker),
        (assert_scales_exactly, broken.AbsoluteMargin),
        (assert_scales_to_one_bin, broken.LeastScale),
        (assert_within_what_was_seen, broken.RelativeMargin),
        (assert_keeps_a_constant, broken.NeverNarrow),
        (assert_keeps_a_constant, broken.ClipsEverything),
        (assert_refuses_nan, broken.IgnoresNonFinite),
        (assert_refuses_nan, broken.CountsBeforeChecking),
        (assert_refuses_infinity, broken.IgnoresNonFinite),
        (assert_refuses_empty, broken.IgnoresEmpty),
        (assert_needs_values, broken.ZeroWithoutValues),
        (assert_memory_is_bounded, broken.Hoards),
        (assert_leaves_its_input, broken.WritesToItsInput),
        (assert_sees_values_not_memory, broken.WholeStorage),
        (assert_merges_its_like_only, broken.MergesAnything),
        (partial(assert_channels_are_independent, qtype=QType(3)), broken.OneFactorForAll),
        (assert_channels_are_independent, broken.LastAxis),
    ],
)
def test_law_rejects_a_broken_specimen(law: Callable[[Kind], None], specimen: Kind):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(specimen)
