"""Post-training methods that are nearly right, each of which some law must reject."""

from collections.abc import Callable
from typing import Any

import torch


def _update(change: Callable[..., tuple[Any, Any]]) -> Callable[..., float]:
    """An update of a pair that multiplies the two weights by what ``change`` says."""

    def update(sweeper: Any, pair: Any) -> float:
        first, second = sweeper.ranges(pair)
        on_head, on_tail = change(torch.sqrt(first / second))
        sweeper.sides[pair.head].outputs *= on_head
        sweeper.sides[pair.tail].inputs *= on_tail
        return 0.0

    return update


EQUALIZATIONS = {
    "the direction of course notes": _update(lambda s: (s, 1 / s)),
    "without the root": _update(lambda s: (1 / s**2, s**2)),
    "one side alone": _update(lambda s: (1 / s, torch.ones_like(s))),
    "one percent off": _update(lambda s: (1 / s, 1.01 * s)),
}


def shift_bias_twice(model: Any, unit: Any, by: torch.Tensor) -> None:
    """The shift with the wrong sign: it is made twice as large."""
    with torch.no_grad():
        model.parameter_of(unit.bias).sub_(by.float())
