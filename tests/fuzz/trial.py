"""One network on one target: captured, planned, quantized, lowered, exported, run and compared."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import halfstep as hs
from halfstep.catalog import family, find
from halfstep.core.target import Target
from halfstep.errors import (
    CaptureError,
    ExportError,
    LowerError,
    PlanError,
    ProgramError,
)
from halfstep.graph.match import find_units
from halfstep.program.ir import IntProgram
from tests.fuzz.grids import disturb
from tests.fuzz.networks import Network

REFUSALS = (PlanError, LowerError, ProgramError, ExportError)
# Names of steps, paths and numbers, which differ between two networks with one fault.
_PARTICULARS = re.compile(r"steps\.[\w.]+|/\S+|-?[0-9][0-9.e+-]*")
Reached = frozenset[tuple[str, str]]


def targets() -> tuple[str, ...]:
    """The targets of the catalog that have a runtime."""
    return tuple(name for name in family("target") if find("target", name).run is not None)


@dataclass(frozen=True)
class Outcome:
    """What became of a network on a target.

    Attributes:
        status: "exact", "bounded", "refused" (by name, before anything ran), "floats" (no codes
            are made from codes, so there is nothing to compare) or "disagrees".
        stage: the verb that refused, or at which the trouble was seen.
        found: the verdict or the error, in words.
        reached: (kind, execution) of each operation of the program.
        plan: as YAML, where a plan was made.
    """

    status: str
    stage: str
    found: str = ""
    reached: Reached = frozenset()
    plan: str = ""

    @property
    def signature(self) -> str:
        """The same for what is probably the same fault: words without numbers and names."""
        words = self.found.partition("first divergence: ")[2] or self.found
        words = words.splitlines()[0] if words else ""
        return f"{self.stage}: {_PARTICULARS.sub('*', words)[:160]}"


@dataclass
class _Trail:
    """How far a trial came."""

    stage: str = "capture"
    plan: str = ""
    names: tuple[str, ...] = ()
    reached: Reached = frozenset()


def captured(network: Network) -> hs.Graph:
    """The graph of a network; the same for all targets. One that divides 0 by 0 has none."""
    graph = hs.capture(network.module(), network.example())
    with torch.inference_mode():
        outputs = graph.module(*graph.example)
    if not all(torch.isfinite(output).all() for output in outputs):
        raise CaptureError("outputs that are not finite")
    return graph


def attempt(network: Network, target: str, graph: hs.Graph | None = None) -> Outcome:
    """Everything from capture to the verdict; no error comes out of it."""
    trail = _Trail()
    try:
        graph = captured(network) if graph is None else graph
        return _compared(network, target, graph, trail)
    except CaptureError as error:
        return Outcome("refused", "capture", str(error))
    except REFUSALS as error:
        by_name = trail.stage != "verify" and _names(str(error), trail.names)
        words = f"{type(error).__name__}: {error}"
        status = "refused" if by_name else "disagrees"
        return Outcome(status, trail.stage, words, trail.reached, trail.plan)
    except Exception as error:  # whatever it is, it is a finding
        words = f"{type(error).__name__}: {error}"
        return Outcome("disagrees", trail.stage, words, trail.reached, trail.plan)


def _names(message: str, names: tuple[str, ...]) -> bool:
    """Whether a message says which site or operation it is about."""
    return any(name in message for name in names)


def _compared(network: Network, target: str, graph: hs.Graph, trail: _Trail) -> Outcome:
    table: Target = find("target", target)
    trail.stage, trail.names = "plan", _names_of(graph)
    plan = hs.make_plan(graph, target, **_choices(network, table))
    trail.plan = str(plan)
    trail.stage = "prepare"
    model = hs.prepare(graph, plan)
    trail.stage = "calibrate"
    hs.calibrate(model, [network.example(8, 1)])
    disturb(model, network.grids, network.seed)
    trail.stage = "lower"
    hs.repair_scales(model)
    if table.pair_sum_bits is not None:
        hs.repair_pair_sums(model)
    program = hs.lower(model)
    trail.reached = reached(program)
    with _artifact(table) as artifact:
        trail.stage = "export"
        hs.export(program, artifact)
        trail.stage = "verify"
        backend = ("numpy", "torch")[network.seed % 2]
        verdict = hs.verify(program, artifact, samples(network, program), backend=backend)
    status = str(verdict.status)
    if verdict.cause.startswith("nothing was compared"):
        status = "floats"
    status = "disagrees" if status == "failed" else status
    if far := _far_floats(network, verdict):
        return Outcome("disagrees", trail.stage, f"{far}\n{verdict}", trail.reached, trail.plan)
    return Outcome(status, trail.stage, str(verdict), trail.reached, trail.plan)


def _far_floats(network: Network, verdict: hs.Verdict) -> str:
    """Float kernels differ in the last digits: then a code behind them is one step away at most.

    Not where something makes much of the last digits, or is beyond what an int32 has steps for.
    """
    amplified = any(
        step.kind == "layer_norm" or step.options.get("op") == "div" for step in network.steps
    )
    if amplified or network.data == "extreme":
        return ""
    far = [site for site in verdict.sites if not site.comparable and site.largest > 1]
    return "; ".join(f"{site.site}: float {site.kind}: codes far apart" for site in far[:1])


def _names_of(graph: hs.Graph) -> tuple[str, ...]:
    """Its sites and its operations."""
    units = find_units(graph.module, frozenset({"relu", "clamp"}))
    return tuple({*units.sites.values(), *(unit.name for unit in units.units)})


def _choices(network: Network, target: Target) -> dict[str, Any]:
    low, high = target.activation_bits
    bits = min(max(network.activation_bits, low), high)
    signed = "int" if target.activation.signed else "uint"
    least, most = target.weight_bits
    return {
        "weights": f"int{min(max(network.weight_bits, least), most)}_narrow",
        "activations": f"{signed}{bits}",
        "per_channel": network.per_channel,
        "calibrator": "minmax",
    }


@contextmanager
def _artifact(target: Target) -> Iterator[Path]:
    assert target.artifact is not None
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / target.artifact


def samples(network: Network, program: IntProgram) -> list[tuple[Any, ...]]:
    """Two batches of other sizes than the example's, drawn as the network says."""
    quantized = {op.inputs[0]: op.output for op in program.ops if op.kind == "quantize"}
    found = []
    for n, seed in ((3, 2), (1, 3)):
        batch = [value.numpy() for value in network.example(n, seed)]
        for index, name in enumerate(program.inputs):
            if batch[index].dtype.kind == "f":
                scale = program.grid(quantized[name]).scale if name in quantized else 1.0
                batch[index] = _redrawn(batch[index], network.data, float(scale))
        found.append(tuple(batch))
    return found


def _redrawn(values: Any, how: str, scale: float) -> Any:
    if how == "ties":  # half steps, which every way to round treats in its own way
        values = np.rint(values * 64) * (scale / 2)
    elif how == "extreme":
        values = values * 1e4 * scale
    elif how == "constant":
        values = np.full_like(values, 0.7)
    return values.astype(np.float32)


def reached(program: IntProgram) -> Reached:
    """(kind, execution) of each operation; functions under their own names."""
    return frozenset(
        (str(op.attrs["function"]) if op.kind == "lookup" else op.kind, str(op.execution))
        for op in program.ops
    )
