"""The best predicted error for every budget: the Pareto curve of mixed precision.

Reference: Cai et al. 2020 (ZeroQ, arXiv 2001.00281), section 3.2, draws the front by dynamic
programming; here the integer program is solved once for each budget (``search.integer_program``),
which takes any number of limits.
"""

from dataclasses import dataclass

import numpy as np

from halfstep.errors import unknown_name
from halfstep.graph.insert import QuantizedModel
from halfstep.progress import Progress, silent
from halfstep.search.allocate import Allocation, Latencies, allocation, problem_of
from halfstep.search.bit_costs import BitCosts
from halfstep.search.integer_program import LIMITS, smallest, solve


@dataclass(frozen=True)
class ParetoCurve:
    """Allocations from the tightest budget to the widest; each is better than all before it.

    Attributes:
        swept: the limit that was swept.
        points: none takes less of it than another and has a smaller predicted error.
    """

    swept: str
    points: tuple[Allocation, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.points)} allocations over {self.swept}"]
        lines += [f"  {p.usage}: predicted error {p.predicted:.4g}" for p in self.points]
        return "\n".join(lines)


def pareto(
    model: QuantizedModel,
    costs: BitCosts,
    *,
    sweep: str = "bops",
    points: int = 10,
    latencies: Latencies | None = None,
    progress: Progress = silent,
    **limits: float,
) -> ParetoCurve:
    """Solve for budgets between the smallest that can be reached and what all candidates take.

    Args:
        model: that the costs were measured on.
        costs: of every candidate.
        sweep: "size", "bops" or "latency".
        points: how many budgets are tried, each larger by the same factor.
        latencies: as for ``allocate``.
        progress: wraps the budgets.
        **limits: fixed limits on the others, as for ``allocate``.

    Raises:
        UnknownNameError: of the limit that is swept, or of a fixed one.
        PlanError: nothing fits the fixed limits.
    """
    for name in (sweep, *limits):
        if name not in LIMITS:
            raise unknown_name("limit", name, LIMITS)
    problem = problem_of(model, {**costs.weights, **costs.activations}, latencies)
    least = problem.used(sweep, smallest(problem, sweep, limits))
    most = problem.used(sweep, solve(problem, limits))
    found: list[Allocation] = []
    for budget in progress(_between(least, most, points), "budgets"):
        bits = solve(problem, {**limits, sweep: budget})
        new = allocation(model, problem, bits)
        if not found or new.predicted < found[-1].predicted:
            found.append(new)
    return ParetoCurve(sweep, tuple(found))


def _between(least: float, most: float, points: int) -> list[float]:
    """Budgets that grow by one factor, both ends exactly."""
    inner = [float(b) for b in np.geomspace(least, most, points)[1:-1]] if least > 0 else []
    return [least, *inner, *([most] if most > least else [])]
