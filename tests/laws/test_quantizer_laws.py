"""What every quantizer promises, whatever its method: its values are those of its grid."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from halfstep.catalog import family
from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.core.spec import QuantSpec
from halfstep.errors import CalibrationError
from halfstep.quant.quantizer import Quantizer
from halfstep.quant.quantizers.ste import StraightThrough
from tests.broken import quantizers as broken
from tests.models import normal

Kind = Callable[[str, QuantSpec, int | None], Quantizer]
Floats = NDArray[np.float32]

QUANTIZERS: dict[str, Kind] = {
    **{name: entry.load() for name, entry in family("quantizer").items()},
    "in parts": broken.InParts,
}
N_CHANNELS = 3
SPECS = [
    QuantSpec(QType.parse("uint8")),
    QuantSpec(QType.parse("int8_narrow"), symmetric=True),
    QuantSpec(QType.parse("uint4")),
    QuantSpec(QType.parse("int3"), pow2=True),
    QuantSpec(QType.parse("int16")),
    QuantSpec(QType.parse("int8_narrow"), axis=0, symmetric=True),
    QuantSpec(QType.parse("uint8"), axis=1),
    QuantSpec(QType.parse("int4"), axis=-1),
]
SMALL_TYPES = [
    QType(bits, signed, narrow)
    for bits in range(1, 9)
    for signed, narrow in ((False, False), (True, False), (True, True))
    if bits > 1 or not narrow
]

finite = st.floats(-(2.0**100), 2.0**100, width=32)
every_quantizer = pytest.mark.parametrize("kind", QUANTIZERS.values(), ids=QUANTIZERS)
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def grid_of(spec: QuantSpec) -> Affine:
    """A grid with scales that are no powers of two and zero points off the middle."""
    low, high = np.asarray(-0.7), np.asarray(1.9)
    if spec.axis is not None:
        factors = np.array([1.0, 0.037, 11.0])
        low, high = low * factors, high * factors[::-1]
    return Affine.from_range(
        low, high, spec.qtype, axis=spec.axis, symmetric=spec.symmetric, pow2=spec.pow2
    )


def made(kind: Kind, spec: QuantSpec) -> Quantizer:
    quantizer = kind("a:out", spec, None if spec.axis is None else N_CHANNELS)
    quantizer.set_grid(grid_of(spec))
    return quantizer


def values_for(grid: Affine) -> torch.Tensor:
    """Values of shape (3, 3, n, 3): on codes, on ties between them, around both, and far away."""
    codes = np.linspace(grid.qtype.qmin - 3, grid.qtype.qmax + 3, 200).round()
    steps = np.concatenate([codes, codes + 0.5, codes + 0.37, [0.0]]).astype(np.float32)
    far = np.array([-1e30, 1e30, -1e4, 1e4], np.float32)
    steps = np.broadcast_to(np.concatenate([steps, far])[None, None, :, None], (3, 3, 605, 3))
    zero = grid.along(grid.zero_point, 4).astype(np.float32)
    ties = (steps - zero) * grid.along(grid.scale, 4)
    return torch.from_numpy(np.concatenate([ties, normal(3, 3, 50, 3).numpy()], axis=2))


# Laws


def assert_equals_the_grid(kind: Kind, spec: QuantSpec, x: torch.Tensor | None = None) -> None:
    quantizer, grid = made(kind, spec), grid_of(spec)
    x = values_for(grid) if x is None else x
    expected = grid.dequantize(grid.quantize(x.numpy()))
    for learning in (False, True):
        found = quantizer(x.clone().requires_grad_(learning))
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.detach().numpy(), expected)


def assert_gives_values_of_codes(kind: Kind, spec: QuantSpec) -> None:
    grid = grid_of(spec)
    codes = np.arange(grid.qtype.qmin, grid.qtype.qmax + 1).reshape(1, 1, -1, 1)
    levels = grid.dequantize(np.broadcast_to(codes, (3, 3, codes.size, 3)))
    with torch.no_grad():
        found = made(kind, spec)(values_for(grid)).numpy()
    for i, j, k in np.ndindex(3, 3, 3):
        assert np.isin(found[i, j, :, k], levels[i, j, :, k]).all()


def assert_idempotent(kind: Kind, spec: QuantSpec) -> None:
    quantizer = made(kind, spec)
    once = quantizer(values_for(grid_of(spec)))
    assert torch.equal(quantizer(once), once)


def assert_monotone(kind: Kind, spec: QuantSpec) -> None:
    x = values_for(grid_of(spec)).sort(dim=2).values
    assert (made(kind, spec)(x).diff(dim=2) >= 0).all()


def assert_keeps_zero(kind: Kind, spec: QuantSpec) -> None:
    zeros = torch.tensor([0.0, -0.0]).repeat(3, 3, 1)[..., None].repeat(1, 1, 1, 3)
    assert torch.equal(made(kind, spec)(zeros), zeros)


def straight_through(x: Floats, grid: Affine) -> Floats:
    """Krishnamoorthi 2018, section 2.4.2: 1 within the range, 0 beyond, on the rounded code."""
    with np.errstate(over="ignore"):
        steps = np.rint(x / grid.along(grid.scale, x.ndim)) + grid.along(grid.zero_point, x.ndim)
    inside = (steps >= grid.qtype.qmin) & (steps <= grid.qtype.qmax)
    return inside.astype(np.float32)


# The published gradient of every method; one that is missing here fails its law.
GRADIENTS = {StraightThrough: straight_through}


def published_gradient(kind: Any) -> Callable[[Floats, Affine], Floats]:
    return next(GRADIENTS[parent] for parent in kind.__mro__ if parent in GRADIENTS)


def assert_has_the_published_gradient(kind: Kind, spec: QuantSpec) -> None:
    grid = grid_of(spec)
    x = values_for(grid).requires_grad_()
    upstream = normal(*x.shape, seed=4)
    made(kind, spec)(x).backward(upstream)
    assert x.grad is not None
    expected = published_gradient(kind)(x.detach().numpy(), grid)
    assert 0 < expected.mean() < 1, "values inside and outside"
    np.testing.assert_array_equal(x.grad.numpy(), upstream.numpy() * expected)


def assert_gives_back_its_grid(kind: Kind, spec: QuantSpec) -> None:
    assert made(kind, spec).grid().same_as(grid_of(spec))


def assert_state_dict_round_trips(kind: Kind, spec: QuantSpec) -> None:
    quantizer, x = made(kind, spec), values_for(grid_of(spec))
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    other = kind("a:out", spec, None if spec.axis is None else N_CHANNELS)
    other.load_state_dict(state)
    assert other.grid().same_as(quantizer.grid())
    assert torch.equal(other(x), quantizer(x))


def assert_copies_are_independent(kind: Kind, spec: QuantSpec) -> None:
    quantizer, x = made(kind, spec), values_for(grid_of(spec))
    before = quantizer(x)
    copied = copy.deepcopy(quantizer)
    assert copied.spec == quantizer.spec
    assert torch.equal(copied(x), before)
    old = grid_of(spec)
    copied.set_grid(Affine(old.qtype, old.scale * 2, old.zero_point, old.axis))
    assert not torch.equal(copied(x), before)
    assert torch.equal(quantizer(x), before)


def assert_keeps_every_code(kind: Kind, qtype: QType) -> None:
    """Every code comes back as itself, and so does everything just within half a step of it."""
    spec = QuantSpec(qtype, symmetric=False)
    grid, quantizer = grid_of(spec), made(kind, spec)
    codes = np.arange(qtype.qmin, qtype.qmax + 1)
    real = grid.dequantize(codes.astype(qtype.storage))
    for shift in (0.0, 0.499, -0.499):
        found = quantizer(torch.from_numpy(real + np.float32(shift) * grid.scale)).numpy()
        np.testing.assert_array_equal(found, real)


def assert_needs_a_grid(kind: Kind) -> None:
    quantizer = kind("a:out", SPECS[0], None)
    text = r"^a:out: it has no range yet; run halfstep\.calibrate\(model, data\) first$"
    with pytest.raises(CalibrationError, match=text):
        quantizer(torch.zeros(1))
    with pytest.raises(CalibrationError, match=text):
        quantizer.grid()


LAWS = [
    assert_equals_the_grid,
    assert_gives_values_of_codes,
    assert_idempotent,
    assert_monotone,
    assert_keeps_zero,
    assert_has_the_published_gradient,
    assert_gives_back_its_grid,
    assert_state_dict_round_trips,
    assert_copies_are_independent,
]


# The laws hold


@every_quantizer
@every_spec
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("assert_"))
def test_laws(law, kind, spec):
    law(kind, spec)


@every_quantizer
@pytest.mark.parametrize("qtype", SMALL_TYPES, ids=str)
def test_every_code_of_small_types(kind, qtype):
    assert_keeps_every_code(kind, qtype)


@every_quantizer
@settings(max_examples=40)
@given(
    values=st_numpy.arrays(np.float32, (3, 3, 2, 3), elements=finite),
    spec=st.sampled_from(SPECS),
)
def test_any_value_equals_the_grid(kind, values, spec):
    assert_equals_the_grid(kind, spec, torch.from_numpy(values))


@pytest.mark.parametrize("name", family("quantizer"))
def test_without_a_grid_it_refuses(name):
    assert_needs_a_grid(QUANTIZERS[name])


@pytest.mark.parametrize("name", family("quantizer"))
def test_off_it_passes_values_unchanged(name):
    quantizer = made(QUANTIZERS[name], SPECS[0])
    quantizer.enabled = False
    x = normal(3, 5)
    assert quantizer(x) is x


# The laws find every fault

FAULTS = [
    (assert_equals_the_grid, broken.ScaleOffByOnePercent),
    (assert_equals_the_grid, broken.ZeroPointOffByOne),
    (assert_equals_the_grid, broken.RoundHalfUp),
    (assert_equals_the_grid, broken.Reciprocal),
    (assert_equals_the_grid, broken.Wraps),
    (assert_gives_values_of_codes, broken.ScaleOffByOnePercent),
    (assert_gives_values_of_codes, broken.HalfSteps),
    (assert_idempotent, broken.ZeroPointOffByOne),
    (assert_monotone, broken.Wraps),
    (assert_keeps_zero, broken.ZeroPointOffByOne),
    (assert_has_the_published_gradient, broken.UnclippedGradient),
    (assert_has_the_published_gradient, broken.NoGradient),
    (assert_gives_back_its_grid, broken.RoundsItsGrid),
    (assert_state_dict_round_trips, broken.ForgetsItsGrid),
    (assert_copies_are_independent, broken.SharesItsGrid),
]


@pytest.mark.parametrize(
    ("law", "kind"), FAULTS, ids=lambda value: value.__name__.removeprefix("assert_")
)
def test_a_law_rejects(law, kind):
    with pytest.raises(AssertionError):
        law(kind, SPECS[0])


def test_a_law_rejects_one_scale_for_all_channels():
    with pytest.raises(AssertionError):
        assert_equals_the_grid(broken.GridOfChannelZero, SPECS[5])


@pytest.mark.parametrize("kind", [broken.LosesTheLowestCode, broken.ScaleOffByOnePercent])
def test_the_exhaustive_law_rejects(kind):
    with pytest.raises(AssertionError):
        assert_keeps_every_code(kind, QType.parse("uint8"))


def test_every_law_rejects_something():
    assert {law for law, _ in FAULTS} == set(LAWS)
