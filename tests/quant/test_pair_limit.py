"""Codes of pairs with a limit: the nearest that keep it, and the best scale that is tried."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfstep.quant.rounding.lattice import Codes
from halfstep.quant.rounding.pair_limit import CANDIDATES, exceeds, fit, limited, squared_error
from tests.broken import saturation as broken

Array = NDArray[Any]
SMALL, LIMIT = Codes(-7, 7), 9
INT8 = Codes(-127, 127)


def all_pairs(codes: Codes) -> Array:
    every = np.arange(codes.low, codes.high + 1)
    return np.stack(np.meshgrid(every, every), axis=-1).reshape(-1, 2)


def assert_nearest(rounding: Callable[[Array, Codes, int], Array], steps: Array) -> None:
    """Law: codes keep the limit, and no other codes that do are nearer."""
    found = rounding(steps, SMALL, LIMIT)
    every = all_pairs(SMALL)
    allowed = every[~exceeds(every, LIMIT)]
    distance = np.square(steps[:, None] - allowed).sum(axis=-1).min(axis=1)
    assert not exceeds(found, LIMIT).any(), "beyond the limit"
    assert np.abs(found).max() <= 7, "beyond the type"
    mine = np.square(steps - found).sum(axis=-1)
    np.testing.assert_allclose(mine, distance, rtol=1e-5, atol=1e-5, err_msg="not the nearest")


def steps() -> Array:
    """Over and beyond the range of the codes, ties among them."""
    rng = np.random.default_rng(0)
    quarters = all_pairs(Codes(-36, 36)) / 4
    return np.concatenate([quarters, rng.uniform(-10, 10, (2000, 2))]).astype(np.float32)


def test_limited_codes_are_the_nearest() -> None:
    assert_nearest(limited, steps())


@pytest.mark.parametrize("specimen", broken.ROUNDING_SPECIMENS)
def test_a_broken_rounding_is_rejected(specimen: str) -> None:
    with pytest.raises(AssertionError, match=r"beyond the limit|not the nearest"):
        assert_nearest(broken.ROUNDING_SPECIMENS[specimen], steps())


def test_pairs_that_keep_the_limit_go_to_the_nearest_code() -> None:
    kept = all_pairs(INT8)[~exceeds(all_pairs(INT8), 128)].astype(np.float32)
    assert np.array_equal(limited(kept, INT8, 128), kept)
    over = np.float32([[127, 127], [-127, -100], [127, -127], [127, 1], [127, 2]])
    wanted = [[64, 64], [-78, -50], [127, -127], [127, 1], [126, 2]]
    assert np.abs(limited(over, INT8, 128) - wanted).max() <= 1
    assert not exceeds(limited(over, INT8, 128), 128).any()


def weights(seed: int, rows: int = 5) -> tuple[Array, Array]:
    pairs = np.random.default_rng(seed).normal(size=(rows, 40, 2)).astype(np.float32)
    return pairs, (np.abs(pairs).max(axis=(1, 2)) / 127).astype(np.float32)


def test_the_scale_is_the_best_of_those_tried() -> None:
    pairs, scale = weights(0)
    found, chosen, error = fit(pairs, scale, INT8, 128)
    assert not exceeds(found, 128).any()
    np.testing.assert_allclose(error, squared_error(pairs, found, chosen))
    codes = pairs / scale[:, None, None]
    same_sign = np.where(codes.prod(axis=-1) > 0, np.abs(codes.sum(axis=-1)), 0)
    together = np.maximum(same_sign.max(axis=1), 128)
    errors = []
    for share in np.linspace(0, 1, CANDIDATES):
        tried = (scale * (1 + share * (together / 128 - 1))).astype(np.float32)
        rounded = limited(pairs / tried[:, None, None], INT8, 128)
        errors.append(squared_error(pairs, rounded, tried))
    np.testing.assert_allclose(error, np.min(errors, axis=0), rtol=0.01)
    assert np.all(chosen <= scale * together / 128 * 1.001)
    clipped = limited(pairs / scale[:, None, None], INT8, 128)
    other = squared_error(pairs, clipped, scale)
    assert np.array_equal(error < other, together > 128)
    assert np.all(error <= other)
    halved = np.clip(np.rint(pairs / (2 * scale[:, None, None])), -64, 64)
    assert np.all(error < squared_error(pairs, halved, 2 * scale))


def test_what_keeps_the_limit_stays() -> None:
    pairs, scale = weights(1)
    pairs[..., 1] = -pairs[..., 0]
    found, chosen, _ = fit(pairs, scale, INT8, 128)
    assert np.array_equal(chosen, scale)
    assert np.array_equal(found, INT8.nearest(pairs / scale[:, None, None]))


def test_codes_that_exceed_by_little_are_clipped_on_their_scale() -> None:
    """On a larger one all weights, which lie on their grid, would be rounded a second time."""
    rng = np.random.default_rng(2)
    codes = rng.integers(-60, 61, (3, 2000, 2)).astype(np.float32)
    codes[:, 0] = 70, 60
    scale = np.float32([0.1, 0.01, 1])
    found, chosen, _ = fit(codes * scale[:, None, None], scale, INT8, 128)
    assert np.array_equal(chosen, scale)
    assert np.array_equal(found[:, 1:], codes[:, 1:])
    assert found[:, 0].sum(axis=1).tolist() == [128] * 3


def test_a_power_of_two_is_doubled_or_kept() -> None:
    pairs, _ = weights(3, rows=20)
    scale = np.exp2(np.ceil(np.log2(np.abs(pairs).max(axis=(1, 2)) / 127))).astype(np.float32)
    found, chosen, _ = fit(pairs, scale, INT8, 128, pow2=True)
    assert set(np.unique(chosen / scale)) == {1, 2}
    assert not exceeds(found, 128).any()
    assert CANDIDATES > 2
