"""Attempts to quantize a model, judged on the engine and kept on disk, so that none is made twice.

A trial is a way to plan and to fit a model. What it gave is kept under a key that everything goes
into that could change it: the weights, the samples, the choices, the versions of what computes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from halfstep.catalog import find
from halfstep.core.target import Target
from halfstep.data import check_classes, judges_classes
from halfstep.errors import DataError, HalfstepError
from halfstep.files import write_atomically
from halfstep.graph.capture import Graph
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.plan import Plan
from halfstep.lower import lower
from halfstep.pair_repair import repair_pair_sums
from halfstep.program.engine import Engine
from halfstep.result import versions
from halfstep.scale_repair import repair_scales
from halfstep.search.paired import PairedDrop, paired_drop

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to quantize.

    Attributes:
        name: of the sequence of methods.
        cost: its time, in forward passes of the float model over the calibration samples.
        plan: makes the plan of a graph.
        fit: calibrates, rounds, ... a prepared model in place.
        depends_on: what it gives depends on, beside what all trials have in common.
    """

    name: str
    cost: float
    plan: Callable[[Graph], Plan]
    fit: Callable[[QuantizedModel], None]
    depends_on: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a trial gave.

    Attributes:
        name: of the trial.
        model: the quantized model.
        drop: of its decisions on the engine, against the float model's.
        cached: whether it was made by an earlier run.
    """

    name: str
    model: QuantizedModel
    drop: PairedDrop
    cached: bool


class Judge:
    """Compares quantized models with the float model on samples that are kept.

    Args:
        graph: the float model.
        batches: inputs, with labels last if there are any.
        confidence: of the bound on the drop.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], confidence: float) -> None:
        self.batches, self.confidence = batches, confidence
        self.n_inputs = len(graph.inputs)
        with torch.inference_mode():
            outputs = [graph.module(*batch[: self.n_inputs])[0] for batch in batches]
        if not all(judges_classes(output.shape) for output in outputs):
            raise DataError(
                f"output: asked for class scores, (N, classes), found {tuple(outputs[0].shape)}; "
                "'best' compares decisions: take another recipe"
            )
        self.reference = torch.cat([output.argmax(-1) for output in outputs])
        labelled = all(len(batch) > self.n_inputs for batch in batches)
        self.labels = torch.cat([batch[-1] for batch in batches]) if labelled else None
        if self.labels is not None:
            check_classes(self.labels, (len(self.reference), outputs[0].shape[-1]))

    def drop(self, model: QuantizedModel) -> PairedDrop:
        """The drop of what the engine computes, which is what the target will."""
        engine = Engine(lower(model), "torch")
        found = []
        for batch in self.batches:
            run = engine.run([value.cpu().numpy() for value in batch[: self.n_inputs]])
            found.append(torch.from_numpy(run.outputs[0].argmax(-1)))
        return paired_drop(self.reference, torch.cat(found), self.labels, self.confidence)


class Trials:
    """Runs trials, or finds what they gave in ``folder``.

    Args:
        graph: the float model.
        judge: of their decisions.
        folder: where outcomes are kept; ``None`` keeps nothing.
        described: everything else that outcomes depend on: samples and choices.
    """

    def __init__(
        self, graph: Graph, judge: Judge, folder: Path | None, described: Iterable[Any]
    ) -> None:
        self.graph, self.judge, self.folder = graph, judge, folder
        network = [graph.module.code, *graph.module.state_dict().values()]
        self._key = _digest([*network, versions(), *described])

    def run(self, trial: Trial) -> Outcome:
        """Make a trial, unless its outcome is known."""
        stored = self._stored(trial)
        if stored is not None and stored.is_file():
            try:
                return self._loaded(trial, stored)
            except (SafetensorError, ValueError, KeyError, RuntimeError, HalfstepError):
                pass  # damaged, or of an older form: it is made again and replaced
        model = prepare(self.graph, trial.plan(self.graph))
        trial.fit(model)
        target: Target = find("target", model.plan.target)
        if target.limits_scales:
            repair_scales(model)
        if target.pair_sum_bits is not None:
            repair_pair_sums(model)
        drop = self.judge.drop(model)
        if stored is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            figures = {"samples": drop.samples, "lost": drop.lost, "won": drop.won}
            notes = {"drop": json.dumps(figures), "plan": json.dumps(model.plan.to_dict())}
            write_atomically(stored, save(_state(model), notes))
        return Outcome(trial.name, model, drop, cached=False)

    def _stored(self, trial: Trial) -> Path | None:
        key = _digest([self._key, *trial.depends_on])
        return self.folder and self.folder / f"{trial.name}-{key[:16]}.safetensors"

    def _loaded(self, trial: Trial, file: Path) -> Outcome:
        with safe_open(file, "pt") as content:
            notes = content.metadata() or {}
        model = prepare(self.graph, Plan.from_dict(json.loads(notes["plan"])))
        model.module.load_state_dict(load_file(file))
        for quantizer in model.quantizers():
            quantizer.grid()  # raises where no grid was found
        drop = PairedDrop(confidence=self.judge.confidence, **json.loads(notes["drop"]))
        return Outcome(trial.name, model, drop, cached=True)


def _state(model: QuantizedModel) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.module.state_dict().items()}


def _digest(values: Iterable[Any]) -> str:
    """A hash of tensors by their bytes, and of anything else by its text."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            array = np.ascontiguousarray(value.detach().cpu().numpy())
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()
