import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfstep.quant.rounding import lattice
from halfstep.quant.rounding.lattice import Array, Codes
from tests.broken import rounding as broken

INT3 = Codes(-4, 3)


def problem(
    groups: int = 1, columns: int = 6, rows: int = 3, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Weights, a Gram matrix of correlated inputs, and a scale a row."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, 4 * columns, columns)) @ rng.normal(size=(columns, columns))
    gram = inputs.transpose(0, 2, 1) @ inputs / inputs.shape[1] + 1e-3 * np.eye(columns)
    target = rng.normal(size=(groups, columns, rows))
    scale = np.abs(target).max(1, keepdims=True) / 4
    return tuple(part.astype(np.float32) for part in (target, gram, scale))  # type: ignore[return-value]


def error(target: Array, gram: Array, scale: Array, codes: Array) -> float:
    return float(lattice.squared_error(target, codes * scale, gram).sum())


def test_the_error_is_the_quadratic_form() -> None:
    target, gram, scale = problem(groups=2)
    values = INT3.nearest(target / scale) * scale
    found = lattice.squared_error(target, values, gram)
    for g, r in itertools.product(range(2), range(3)):
        e = (target - values)[g, :, r].astype(np.float64)
        assert found[g, r] == pytest.approx(e @ gram[g].astype(np.float64) @ e, rel=1e-5)


def test_nearest_plane_is_nearest_rounding_where_inputs_are_uncorrelated() -> None:
    target, _, scale = problem()
    gram = np.diag(np.arange(1.0, 7.0)).astype(np.float32)[None]
    found = lattice.nearest_plane(target, gram, scale, INT3)
    np.testing.assert_array_equal(found, INT3.nearest(target / scale))


def test_the_inverse_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    _, gram, _ = problem(groups=3)
    upper = lattice._inverse_factor(gram).astype(np.float64)
    assert np.array_equal(upper, np.triu(upper))
    inverse = np.linalg.inv(gram.astype(np.float64))
    np.testing.assert_allclose(upper.transpose(0, 2, 1) @ upper, inverse, rtol=1e-3)


Descent = Callable[[Array, Array, Array, Codes, Array], Array]


def check_descent(descend: Descent, *of: int) -> None:
    """Codes of the type, and no row with a larger error than before."""
    target, gram, scale = problem(*of)
    start = INT3.nearest(target / scale)
    found = descend(target, gram, scale, INT3, start)
    assert np.array_equal(found, np.clip(np.rint(found), -4, 3))
    before, after = (lattice.squared_error(target, codes * scale, gram) for codes in (start, found))
    assert np.all(after <= before * (1 + 1e-4) + 1e-6)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 70), st.integers(1, 4))
def test_descent_never_raises_the_error_of_a_row(
    seed: int, groups: int, columns: int, rows: int
) -> None:
    check_descent(lattice.descend, groups, columns, rows, seed)


@pytest.mark.parametrize("specimen", [broken.uphill, broken.unsaturated, broken.halfway])
def test_a_wrong_descent_is_found(specimen: Descent) -> None:
    with pytest.raises(AssertionError):
        check_descent(specimen, 1, 20, 5)


def test_descent_ends_where_no_single_code_can_be_improved() -> None:
    target, gram, scale = problem()
    found = lattice.descend(target, gram, scale, INT3, np.zeros_like(target), sweeps=100)
    least = error(target, gram, scale, found)
    for column, row, move in itertools.product(range(6), range(3), (-1, 1)):
        other = found.copy()
        other[0, column, row] = np.clip(other[0, column, row] + move, -4, 3)
        assert error(target, gram, scale, other) >= least * (1 - 1e-5)


def test_a_sweep_and_descent_come_close_to_the_best_of_all_codes() -> None:
    target, gram, scale = problem(columns=5, rows=20)
    codes = np.array(list(itertools.product(range(-4, 4), repeat=5)), np.float32)
    found, _ = lattice.solve(target, gram, INT3, scale=scale, fit_scale=False)
    nearest = INT3.nearest(target / scale)
    totals = np.zeros(3)
    for row in range(20):
        e = target[0, :, row] - codes * scale[0, :, row]
        best = np.einsum("nk,kl,nl->n", e, gram[0], e).min()
        mine, plain = (
            float(lattice.squared_error(target, c * scale, gram)[0, row]) for c in (found, nearest)
        )
        assert mine >= best * (1 - 1e-4)
        totals += best, mine, plain
    best, mine, plain = totals
    assert mine - best < 0.5 * (plain - best)


def test_the_fitted_scale_is_the_best_for_its_codes() -> None:
    target, gram, scale = problem()
    codes = INT3.nearest(target / scale)
    fitted = lattice.fitted_scale(target, gram, codes, scale)
    least = lattice.squared_error(target, codes * fitted, gram)
    for factor in (0.99, 1.01):
        assert np.all(lattice.squared_error(target, codes * fitted * factor, gram) > least)


def test_one_scale_for_all_rows_stays_one() -> None:
    target, gram, scale = problem()
    one = scale.max().reshape(1, 1, 1)
    assert lattice.searched_scale(target, gram, INT3, per_row=False).shape == (1, 1, 1)
    codes, fitted = lattice.solve(target, gram, INT3, scale=one)
    assert fitted.shape == (1, 1, 1)
    assert codes.shape == target.shape


def test_a_dead_row_keeps_its_scale_and_gets_zeros() -> None:
    target, gram, scale = problem()
    target[:, :, 1] = 0
    scale[:, :, 1] = 1
    codes, fitted = lattice.solve(target, gram, INT3, scale=scale)
    assert not codes[:, :, 1].any()
    assert fitted[0, 0, 1] == 1


def test_the_searched_scale_is_at_least_as_good_as_the_whole_range() -> None:
    target, gram, _ = problem(columns=40)
    found = lattice.searched_scale(target, gram, INT3, per_row=True)
    whole = np.maximum(target.max(1, keepdims=True) / 3, -target.min(1, keepdims=True) / 4)
    errors = [
        lattice.squared_error(target, INT3.nearest(target / scale) * scale, gram)
        for scale in (found, whole)
    ]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))
    assert errors[0].sum() < 0.95 * errors[1].sum()


def test_a_matrix_that_rounding_left_without_a_factor_is_rounded_on_all_the_same() -> None:
    """Means a thousand times the deviations, in float32: the smallest eigenvalue is negative."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(40, 1)) * 3000
    gram = (np.eye(40) * 0.01 + mean @ mean.T).astype(np.float32)[None]
    assert np.linalg.eigvalsh(gram[0].astype(np.float64)).min() < 0
    target = rng.normal(size=(1, 40, 3)).astype(np.float32)
    codes = lattice.Codes(-7, 7)
    found, scale = lattice.solve(
        target, gram, codes, scale=np.full((1, 1, 3), 0.4, np.float32), fit_scale=False, rounds=1
    )
    assert np.isfinite(found).all() and np.isfinite(scale).all()
    assert np.abs(found).max() <= 7
