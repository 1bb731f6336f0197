"""The integer program: the optimum is the best of all choices, and no limit is ever exceeded."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfstep.errors import PlanError
from halfstep.search.integer_program import Problem, Product, smallest, solve

WIDTHS = (2, 4, 8)


def problem(
    seed: int, n_layers: int, *, shared: bool = False, table: bool = False, squared: bool = False
) -> Problem:
    """Layers in a row; with ``shared`` two of them read the same value."""
    rng = np.random.default_rng(seed)
    weights = [f"l{i}:weight" for i in range(n_layers)]
    values = [f"l{i}:in" for i in range(n_layers - shared)]
    costs = {s: {b: float(rng.exponential(4.0**-b)) for b in WIDTHS} for s in weights + values}
    counts = {w: int(rng.integers(10, 1000)) for w in weights}
    inputs = [values[min(i, len(values) - 1)] for i in range(n_layers)]
    products = [
        Product(f"l{i}", inputs[i], weights[i], int(rng.integers(100, 10_000)), latency(rng, table))
        for i in range(n_layers)
    ]
    if squared:
        products.append(Product("square", values[0], values[0], 500, latency(rng, table)))
        products.append(Product("pair", values[0], values[-1], 700, latency(rng, table)))
    return Problem(costs, counts, tuple(products), {"size": 7.0, "bops": 1000.0})


def latency(rng: np.random.Generator, table: bool) -> dict[tuple[int, int], float]:
    if not table:
        return {}
    return {(i, j): float(rng.uniform(1, 2) * (i + j)) for i, j in product(WIDTHS, WIDTHS)}


def brute_force(p: Problem, limits: dict[str, float]) -> float | None:
    """The smallest cost over every choice of bits that fits."""
    sites = list(p.costs)
    best = None
    for bits in product(*(p.costs[site] for site in sites)):
        choice = dict(zip(sites, bits, strict=True))
        if all(p.used(limit, choice) <= most for limit, most in limits.items()):
            total = p.total(choice)
            best = total if best is None else min(best, total)
    return best


def extent(p: Problem, limit: str) -> tuple[float, float]:
    return tuple(p.used(limit, dict.fromkeys(p.costs, b)) for b in (WIDTHS[0], WIDTHS[-1]))


def between(p: Problem, limit: str, share: float) -> float:
    low, high = extent(p, limit)
    return low + share * (high - low)


shares = st.floats(0, 1.1)


@given(
    seed=st.integers(0, 10_000),
    size=shares,
    bops=shares,
    seconds=shares,
    shared=st.booleans(),
    squared=st.booleans(),
    limits=st.sets(st.sampled_from(["size", "bops", "latency"])),
)
@settings(max_examples=40)
def test_the_optimum_is_the_best_of_all_choices(seed, size, bops, seconds, shared, squared, limits):
    p = problem(seed, 3, shared=shared, table=True, squared=squared)
    given_shares = {"size": size, "bops": bops, "latency": seconds}
    asked = {limit: between(p, limit, given_shares[limit]) for limit in limits}
    expected = brute_force(p, asked)
    if expected is None:
        with pytest.raises(PlanError):
            solve(p, asked)
        return
    found = solve(p, asked)
    assert found.keys() == p.costs.keys()
    assert p.total(found) == pytest.approx(expected, rel=1e-6)
    for limit, most in asked.items():
        assert p.used(limit, found) <= most * (1 + 1e-12)


@pytest.mark.parametrize("exponent", [-9, 0, 9])
def test_the_scale_of_costs_does_not_matter(exponent):
    p = problem(3, 4)
    scaled = Problem(
        {s: {b: c * 10.0**exponent for b, c in t.items()} for s, t in p.costs.items()},
        p.counts,
        p.products,
        p.fixed,
    )
    limits = {"size": between(p, "size", 0.4), "bops": between(p, "bops", 0.3)}
    assert solve(scaled, limits) == solve(p, limits)


def test_more_room_never_costs_more():
    p = problem(5, 6, shared=True)
    found = [
        p.total(solve(p, {"bops": between(p, "bops", s), "size": between(p, "size", 0.5)}))
        for s in np.linspace(0.02, 1, 12)
    ]
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(found))
    assert found[0] > found[-1]


def test_limits_are_met_to_the_last_unit():
    """A limit that one choice meets exactly allows that choice, and one less forbids it."""
    p = problem(7, 4)
    bits = dict.fromkeys(p.costs, 4)
    exact = p.used("bops", bits)
    cheap = Problem(
        {s: {b: 0.0 if b == bits[s] else 1.0 for b in t} for s, t in p.costs.items()},
        p.counts,
        p.products,
        p.fixed,
    )
    assert solve(cheap, {"bops": exact}) == bits
    assert cheap.used("bops", solve(cheap, {"bops": exact - 1})) <= exact - 1
    assert solve(cheap, {"size": p.used("size", bits)}) == bits


def test_a_value_that_two_layers_read_has_one_width():
    """Layers in a chain could choose apart; here one of them would want 2 bits, the other 8."""
    costs = {
        "x": {2: 1.0, 8: 0.0},
        "a:weight": {8: 0.0},
        "b:weight": {8: 0.0},
    }
    products = (Product("a", "x", "a:weight", 1000), Product("b", "x", "b:weight", 1))
    p = Problem(costs, {}, products)
    assert solve(p, {"bops": 1001 * 8 * 8})["x"] == 8
    assert solve(p, {"bops": 1001 * 8 * 8 - 1})["x"] == 2


def test_an_unreachable_limit_names_the_smallest():
    p = problem(1, 3)
    low, _ = extent(p, "size")
    with pytest.raises(
        PlanError,
        match=r"size=5: no choice of bits takes so little; the smallest that can be reached is "
        rf"size={low:.6g}\. Allow more",
    ):
        solve(p, {"size": 5})


def test_limits_that_exclude_each_other_name_the_smallest_within_the_others():
    costs = {"x": {2: 0.0, 8: 0.0}, "a:weight": {2: 0.0, 8: 0.0}}
    table = {(2, 2): 9.0, (2, 8): 1.0, (8, 2): 9.0, (8, 8): 1.0}
    p = Problem(costs, {"a:weight": 8}, (Product("a", "x", "a:weight", 10, table),))
    with pytest.raises(
        PlanError, match=r"size=2: no choice of bits takes so little within latency=3"
    ):
        solve(p, {"size": 2, "latency": 3})
    assert solve(p, {"size": 8, "latency": 3})["a:weight"] == 8


def test_the_smallest_within_others():
    p = problem(2, 3)
    assert p.used("bops", smallest(p, "bops", {})) == extent(p, "bops")[0]
    with pytest.raises(PlanError, match="size=1"):
        smallest(p, "bops", {"size": 1})


def test_no_limits_is_the_cheapest_of_each():
    p = problem(4, 3)
    assert solve(p, {}) == {site: min(c, key=c.__getitem__) for site, c in p.costs.items()}
