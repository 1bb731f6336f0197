"""The choice of a number of bits for every site, as an integer program that is solved exactly.

Reference: Z. Yao et al., "HAWQ-V3: Dyadic neural network quantization", arXiv 2011.10680, 2021,
section 3.4, equations 9 to 12: minimize the sum of sensitivities under limits of size, bit
operations and latency.

Variables: ``x[s, b]`` is 1 if site ``s`` has ``b`` bits. A product of two values, ``a`` and ``w``,
costs what depends on the bits of both, so it has ``z[p, i, j]``, 1 if ``a`` has ``i`` bits and
``w`` has ``j``:

    minimize    sum x[s, b] cost[s, b]
    subject to  sum over b of x[s, b] = 1
                sum over j of z[p, i, j] = x[a, i],   sum over i of z[p, i, j] = x[w, j]
                sum x[s, b] count[s] b / 8          <= size     (weights alone, in bytes)
                sum z[p, i, j] macs[p] i j          <= bops
                sum z[p, i, j] latency[p][i, j]     <= latency

With ``x`` fixed, the two sums leave ``z`` one value. Activations that share a grid, because codes
are copied between them or because several operations read them, are one site, so they have one
``x``: the paper has bits for each layer instead, which cannot say that two layers read the same
value. A product of a value with itself has ``z[p, i, i] = x[a, i]``.

The solver is HiGHS (Huangfu and Hall 2018) through ``scipy.optimize.milp``, with no gap allowed
between what was found and what is proven.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import PlanError

Pair = tuple[int, int]
Vector = NDArray[np.float64]
LIMITS = ("size", "bops", "latency")

# Relative: by how much the order of a sum of seconds can change it.
SUM_ERROR = 1e-12


@dataclass(frozen=True)
class Product:
    """An operation that multiplies the values of two sites.

    Attributes:
        name: of the operation.
        left: site of the activation.
        right: site of the weight, or of another activation, perhaps the same.
        macs: multiply-accumulates a sample.
        latency: seconds for each pair of bits, (left, right); empty if they were not measured.
    """

    name: str
    left: str
    right: str
    macs: int
    latency: Mapping[Pair, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What can be chosen, and what it costs.

    Attributes:
        costs: for each site and each number of bits it may have, the predicted error.
        counts: for each site of a weight, how many weights it has.
        products: the operations whose cost depends on two sites.
        fixed: size, bops and latency of what is not chosen.
    """

    costs: Mapping[str, Mapping[int, float]]
    counts: Mapping[str, int]
    products: tuple[Product, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def total(self, bits: Mapping[str, int]) -> float:
        """The predicted error of a choice."""
        return sum(self.costs[site][b] for site, b in bits.items())

    def used(self, limit: str, bits: Mapping[str, int]) -> float:
        """What a choice takes of one limit."""
        used = self.fixed.get(limit, 0.0)
        if limit == "size":
            return used + sum(n * bits[site] for site, n in self.counts.items()) / 8
        return used + sum(_amount(limit, p, (bits[p.left], bits[p.right])) for p in self.products)


def solve(problem: Problem, limits: Mapping[str, float]) -> dict[str, int]:
    """The bits of every site with the smallest predicted error within ``limits``.

    Args:
        problem: the choices.
        limits: by "size", "bops" or "latency", the most that is allowed.

    Raises:
        PlanError: nothing fits; the message names the smallest that can be reached.
    """
    model = _Model(problem)
    found = model.minimize(model.costs, limits)
    if found is None:
        raise PlanError(_unreachable(model, limits))
    return found


def smallest(problem: Problem, limit: str, others: Mapping[str, float]) -> dict[str, int]:
    """The bits that take the least of one limit, within the others.

    Raises:
        PlanError: nothing fits the others.
    """
    model = _Model(problem)
    found = model.minimize(model.rows[limit], others)
    if found is None:
        raise PlanError(_unreachable(model, others))
    return found


def _unreachable(model: "_Model", limits: Mapping[str, float]) -> str:
    """Which limit cannot be met: alone, or together with the others."""
    for alone in (True, False):
        for limit, wanted in limits.items():
            others = {} if alone else {k: v for k, v in limits.items() if k != limit}
            bits = model.minimize(model.rows[limit], others)
            if bits is None or model.problem.used(limit, bits) <= wanted:
                continue
            within = f" within {_listed(others)}" if others else ""
            return (
                f"{limit}={wanted:.6g}: no choice of bits takes so little{within}; the smallest "
                f"that can be reached is {limit}={model.problem.used(limit, bits):.6g}. Allow "
                "more, or candidates of fewer bits"
            )
    return f"no choice of bits fits {_listed(limits)}"


def _listed(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.6g}" for name, value in limits.items())


def _amount(limit: str, p: Product, pair: Pair) -> float:
    return float(p.macs * pair[0] * pair[1]) if limit == "bops" else p.latency.get(pair, 0.0)


class _Model:
    """The matrices of one problem, made once for any limits."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x = {
            key: index
            for index, key in enumerate(
                (site, bits) for site, costs in problem.costs.items() for bits in costs
            )
        }
        self.z = {
            key: len(self.x) + index
            for index, key in enumerate(
                (number, i, j)
                for number, p in enumerate(problem.products)
                for i, j in self._pairs(p)
            )
        }
        self.size = len(self.x) + len(self.z)
        self.costs = self._vector({v: problem.costs[s][b] for (s, b), v in self.x.items()})
        self.rows = {limit: self._row(limit) for limit in LIMITS}
        self.structure, self.sums = self._structure()

    def minimize(self, objective: Vector, limits: Mapping[str, float]) -> dict[str, int] | None:
        """The choice with the smallest objective; ``None`` if nothing fits."""
        room = {limit: most - self.problem.fixed.get(limit, 0.0) for limit, most in limits.items()}
        relaxed = self._solved(objective, room, integer=False)
        # The solver stops at an absolute gap of 1e-6, and its feasibility is one of 1e-6 as well.
        bound = 0.0 if relaxed is None else float(objective @ relaxed)
        scale = bound / 1e3 or float(np.abs(objective).max(initial=0.0)) or 1.0
        while relaxed is not None:
            found = self._solved(objective / scale, room)
            if found is None:
                return None
            bits = {site: b for (site, b), v in self.x.items() if found[v] > 0.5}
            over = {k: self.problem.used(k, bits) - most for k, most in limits.items()}
            if not any(excess > SUM_ERROR * limits[k] for k, excess in over.items()):
                return bits
            room = {k: room[k] - max(excess, 0.0) for k, excess in over.items()}
        return None

    def _solved(
        self, objective: Vector, room: Mapping[str, float], integer: bool = True
    ) -> Vector | None:
        # Imported here: it takes a second, and most who import halfstep solve nothing.
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self.structure, self.sums, self.sums)]
        for limit, most in room.items():
            row = self.rows[limit]
            scale = float(np.abs(row).max(initial=0.0)) or 1.0
            constraints.append(LinearConstraint(row[None] / scale, -np.inf, most / scale))
        found: Vector | None = milp(
            objective,
            # Of ``z`` it follows from ``x``, but the solver would make a program of its own of it.
            integrality=np.full(self.size, int(integer)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        ).x
        return found

    def _pairs(self, p: Product) -> Iterator[Pair]:
        left, right = self.problem.costs[p.left], self.problem.costs[p.right]
        if p.left == p.right:
            return ((b, b) for b in left)
        return product(left, right)

    def _vector(self, entries: Mapping[int, float]) -> Vector:
        vector = np.zeros(self.size)
        vector[list(entries)] = list(entries.values())
        return vector

    def _row(self, limit: str) -> Vector:
        """What each variable takes of a limit."""
        if limit == "size":
            counts = self.problem.counts
            return self._vector(
                {v: counts[s] * b / 8 for (s, b), v in self.x.items() if s in counts}
            )
        products = self.problem.products
        return self._vector(
            {v: _amount(limit, products[n], (i, j)) for (n, i, j), v in self.z.items()}
        )

    def _structure(self) -> tuple[Any, list[float]]:
        """One number of bits a site; each ``z`` says what the two ``x`` say: rows and sums."""
        from scipy.sparse import csr_array

        rows: list[dict[int, float]] = []
        for site, costs in self.problem.costs.items():
            rows.append({self.x[site, bits]: 1.0 for bits in costs})
        sums = [1.0] * len(rows)
        for number, p in enumerate(self.problem.products):
            ends: dict[tuple[str, int], dict[int, float]] = {}
            for i, j in self._pairs(p):
                variable = self.z[number, i, j]
                for key in {(p.left, i), (p.right, j)}:
                    ends.setdefault(key, {self.x[key]: -1.0})[variable] = 1.0
            rows += ends.values()
            sums += [0.0] * len(ends)
        entries = [(r, c, value) for r, row in enumerate(rows) for c, value in row.items()]
        row, column, value = zip(*entries, strict=True)
        return csr_array((value, (row, column)), shape=(len(rows), self.size)), sums
