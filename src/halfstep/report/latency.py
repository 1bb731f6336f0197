"""What quantization gained: size and speed against the float model in the same runtime.

Both files come from the same exporter, so the comparison is about integers and nothing else.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from halfstep.catalog import find
from halfstep.core.target import Target, resolve
from halfstep.errors import PlanError
from halfstep.export.verb import export
from halfstep.files import read_contents, size_of, write_contents
from halfstep.graph.insert import prepare
from halfstep.graph.planner import make_plan
from halfstep.lower import lower
from halfstep.result import Result

ROUNDS = 30


@dataclass(frozen=True)
class Gain:
    """Float and integer artifact of one model; batch 1, seconds of the fastest of ``rounds``."""

    float_bytes: int
    integer_bytes: int
    float_seconds: float
    integer_seconds: float
    rounds: int


def compare_with_float(result: Result, rounds: int = ROUNDS) -> Gain:
    """Export the float model as well, and run both on one sample.

    Raises:
        HalfstepError: the target has no runtime, or takes no float model.
    """
    target: Target = find("target", result.program.target)
    if result.artifact is None or target.run is None:
        raise PlanError(f"target '{target.name}' has no runtime: nothing to compare with")
    if target.integer_only:
        raise PlanError(f"target '{target.name}' runs no float model: no speed to compare with")
    graph = result.model.graph
    float_plan = make_plan(graph, target.name).keep_float("*", "the float model")
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            kind: Path(folder) / f"{kind}-{result.artifact[0]}" for kind in ("float", "integer")
        }
        export(lower(prepare(graph, float_plan)), paths["float"])
        write_contents(paths["integer"], result.artifact[1])
        sample = [value[:1].numpy() for value in graph.example]
        models = {kind: resolve(target.run)(path, spin=True) for kind, path in paths.items()}
        runs = {kind: partial(model.run, sample) for kind, model in models.items()}
        seconds = interleaved_minimum(runs, rounds)
        sizes = {kind: size_of(read_contents(path)) for kind, path in paths.items()}
    return Gain(sizes["float"], sizes["integer"], seconds["float"], seconds["integer"], rounds)


def interleaved_minimum(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Seconds of the fastest call of each function, after one that is not counted.

    The functions take turns, every other round in reverse order, so that a busy machine disturbs
    all of them alike.
    """
    for function in functions.values():
        function()
    fastest = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds):
        for name in list(functions)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            functions[name]()
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
    return fastest
