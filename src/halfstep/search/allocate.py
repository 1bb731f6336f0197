"""Mixed precision: bits for each weight and activation where they pay, within a budget.

Reference: the integer program of HAWQ-V3 (``search.integer_program``), over costs that were
measured (``search.bit_costs``) or that follow from Hessian traces (``search.traces``).

What a plan takes, with ``n_u`` the weights of an operation and ``macs_u`` its multiply-accumulates
a sample:

    size = sum n_u bits(weight of u) / 8                     in bytes
    bops = sum macs_u bits(weight of u) bits(input of u)     a sample
    latency = sum seconds_u(bits of input, bits of weight)   from a table

Operations that the plan keeps in float count with 32 bits. Biases and scales are not counted: no
choice changes them.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from halfstep.errors import PlanError, unknown_name
from halfstep.graph.calibrate import keep_biases_small
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.match import Unit
from halfstep.graph.placement import QUANTIZED, WEIGHTED
from halfstep.graph.plan import Plan
from halfstep.graph.readers import shape_of
from halfstep.search.bit_costs import BitCosts
from halfstep.search.candidates import Grids, widths, with_bits
from halfstep.search.integer_program import LIMITS, Pair, Problem, Product, solve

FLOAT_BITS = 32
Latencies = Mapping[str, Mapping[Pair, float]]
"""For operations by name, seconds for each pair (bits of the input, bits of the weight)."""


@dataclass(frozen=True)
class Usage:
    """What a choice of bits takes: bytes of weights, bit operations and seconds a sample."""

    size: float
    bops: float
    latency: float = 0.0

    def __str__(self) -> str:
        seconds = f", {1000 * self.latency:.3f} ms" if self.latency else ""
        return f"{self.size / 1000:.4g} kB of weights, {self.bops / 1e9:.4g} GBOPs{seconds}"


@dataclass(frozen=True, eq=False)
class Allocation:
    """A plan with bits where they pay.

    Attributes:
        plan: the plan of the model with these bits; prepare and calibrate it anew.
        weights: bits by the site of each weight.
        activations: bits by the site of each quantizer of activations.
        predicted: the sum of the costs of these bits.
        usage: what the plan takes.
    """

    plan: Plan
    weights: Mapping[str, int]
    activations: Mapping[str, int]
    predicted: float
    usage: Usage

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __str__(self) -> str:
        lines = [f"predicted error {self.predicted:.4g}: {self.usage}"]
        for name in ("weights", "activations"):
            counts = Counter(getattr(self, name).values())
            listed = ", ".join(f"{n} of {bits} bits" for bits, n in sorted(counts.items()))
            lines.append(f"  {name}: {listed or 'none'}")
        return "\n".join(lines)


def allocate(
    model: QuantizedModel,
    costs: BitCosts,
    *,
    size: float | None = None,
    bops: float | None = None,
    latency: float | None = None,
    latencies: Latencies | None = None,
) -> Allocation:
    """The choice of bits with the smallest sum of costs, within every limit that is given.

    Args:
        model: that the costs were measured on.
        costs: of every candidate.
        size: bytes that the weights may take.
        bops: bit operations that a sample may take; ``uniform`` gives those of one width.
        latency: seconds that a sample may take.
        latencies: for ``latency``: measured seconds of operations, for every pair of candidates.

    Raises:
        PlanError: nothing fits, and the message names the smallest that can be reached; or the
            table of latencies lacks a pair.
        UnknownNameError: the table has an operation that the plan does not quantize.
    """
    given = {"size": size, "bops": bops, "latency": latency}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if latency is not None and latencies is None:
        raise PlanError("latency: asked for a limit without a table; give latencies as well")
    problem = problem_of(model, {**costs.weights, **costs.activations}, latencies)
    bits = solve(problem, limits)
    return allocation(model, problem, bits)


def allocated(model: QuantizedModel, found: Allocation, grids: Grids) -> QuantizedModel:
    """The model of an allocation, on the grids of its candidates: it needs no calibration.

    Args:
        model: that the candidates were found for; it is left as it was.
        found: from ``allocate`` or ``pareto``.
        grids: from ``candidate_grids``.
    """
    new = prepare(model.graph, found.plan)
    for site, bits in {**found.weights, **found.activations}.items():
        new.quantizer(site).set_grid(grids[site][bits])
    keep_biases_small(new)
    return new


def uniform(model: QuantizedModel, weights: int, activations: int) -> Usage:
    """What the model takes if all weights have as many bits, and all activations.

    Sites whose grid the kernel dictates keep their own.
    """
    costs = {site: {weights: 0.0} for site in model.weight_sites()}
    for site in model.activation_sites():
        (bits,) = widths(model.quantizer(site).spec, (activations,))
        costs[site] = {bits: 0.0}
    problem = problem_of(model, costs)
    return _usage(problem, {site: next(iter(only)) for site, only in costs.items()})


def problem_of(
    model: QuantizedModel,
    costs: Mapping[str, Mapping[int, float]],
    latencies: Latencies | None = None,
) -> Problem:
    """The sites, weights and products of a model."""
    counts: dict[str, int] = {}
    products: list[Product] = []
    real: dict[str, int] = {}
    bops = 0.0
    for unit in model.units.units:
        weighted = unit.kind in WEIGHTED and unit.weight is not None
        if model.plan.executions[unit.name] not in QUANTIZED:
            bops += unit.macs * FLOAT_BITS**2
            if weighted:
                real[model.weight_site(unit)] = _n_weights(unit)
            continue
        if weighted:
            counts[model.weight_site(unit)] = _n_weights(unit)
        if weighted or unit.kind == "matmul":
            table = {} if latencies is None else latencies.get(unit.name, {})
            products.append(Product(unit.name, *_factors(model, unit), unit.macs, table))
    if latencies is not None:
        _check_latencies(latencies, products, costs)
    size = sum(n for site, n in real.items() if site not in counts) * FLOAT_BITS / 8
    return Problem(costs, counts, tuple(products), {"size": size, "bops": bops})


def allocation(model: QuantizedModel, problem: Problem, bits: Mapping[str, int]) -> Allocation:
    """The plan of ``model`` with these bits, and what it takes."""
    plan = model.plan
    for site, width in bits.items():
        plan = plan.edit(site, qtype=with_bits(plan.specs[site], width).qtype)
    weights = set(model.weight_sites())
    return Allocation(
        plan,
        {site: width for site, width in bits.items() if site in weights},
        {site: width for site, width in bits.items() if site not in weights},
        problem.total(bits),
        _usage(problem, bits),
    )


def _usage(problem: Problem, bits: Mapping[str, int]) -> Usage:
    return Usage(*(problem.used(limit, bits) for limit in LIMITS))


def _n_weights(unit: Unit) -> int:
    assert unit.weight is not None
    return math.prod(shape_of(unit.weight))


def _factors(model: QuantizedModel, unit: Unit) -> tuple[str, str]:
    """The quantizers of the two values that an operation multiplies."""
    left, *others = (model.site_quantizer[model.units.sites[node]] for node in unit.inputs)
    return (left, others[0]) if others else (left, model.weight_site(unit))


def _check_latencies(
    latencies: Latencies, products: list[Product], costs: Mapping[str, Mapping[int, float]]
) -> None:
    known = {p.name: p for p in products}
    for name, table in latencies.items():
        if name not in known:
            raise unknown_name("quantized operation with products", name, known)
        p = known[name]
        missing = [(i, j) for i in costs[p.left] for j in costs[p.right] if (i, j) not in table]
        if missing:
            raise PlanError(
                f"{name}: its table of latencies has no entry for (input, weight) bits of "
                f"{missing[0]}; measure every pair of candidates, or drop it from them"
            )
