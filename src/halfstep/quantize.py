"""The main verb: a float model in, a proven integer artifact out."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from halfstep.catalog import find
from halfstep.core.target import Target, resolve
from halfstep.data import example_of
from halfstep.errors import DataError
from halfstep.graph.insert import QuantizedModel
from halfstep.journal import Journal
from halfstep.lower import lower
from halfstep.progress import Progress, silent
from halfstep.result import Result
from halfstep.verdict import Verdict
from halfstep.verify import Stage, Values, verify


def quantize(
    model: nn.Module,
    data: Iterable[Any],
    *,
    target: str = "onnxruntime",
    recipe: str = "ptq",
    verify_samples: int = 64,
    progress: Progress = silent,
    **choices: Any,
) -> Result:
    """Quantize ``model`` for ``target`` and prove that the artifact computes what was simulated.

    Args:
        model: a float model in any mode; it is left as it was.
        data: calibration batches: tensors, tuples of inputs with or without labels, or dicts by
            input name. It is read once, and never held.
        target: a name in the catalog.
        recipe: a name in the catalog.
        verify_samples: how many of the first samples the proof runs on; 0 skips it.
        progress: shows how far it is; ``halfstep.progress.on_terminal`` draws a bar.
        **choices: of ``make_plan``: weights, activations, per_channel, calibrator,
            weight_calibrator, first_last.

    Raises:
        HalfstepError: see ``halfstep.errors``; the message names the site.

    Example:
        result = halfstep.quantize(model, batches, target="onnxruntime")
        result.save("out")
    """
    table: Target = find("target", target)
    run = find("recipe", recipe)
    journal = Journal()
    head, whole = peek(data)
    held = _Held(verify_samples)
    example = example_of(head, model.forward, torch.as_tensor)
    quantized: QuantizedModel = run(
        model,
        example,
        held.watch(whole),
        target=target,
        journal=journal,
        progress=progress,
        **choices,
    )
    with journal.step("lower"):
        program = lower(quantized)
    if table.export is None:
        return Result(quantized, program, None, None, journal)
    assert table.artifact is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / table.artifact
        with journal.step("export") as record:
            resolve(table.export)(program, path)
            record.facts["bytes"] = path.stat().st_size
        verdict: Verdict | None = None
        if verify_samples:
            with journal.step("verify", samples=verify_samples):
                verdict = verify(program, path, held.first(), stages=stages(model, quantized))
        return Result(quantized, program, (table.artifact, path.read_bytes()), verdict, journal)


def stages(model: nn.Module, quantized: QuantizedModel) -> dict[str, Stage]:
    """The float and the fake-quantized model, as functions of arrays."""

    def stage(module: nn.Module, names: Sequence[str] | None) -> Stage:
        def run(inputs: Sequence[Values]) -> Values:
            tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs]
            was_training = module.training
            module.eval()
            try:
                with torch.inference_mode():
                    out = (
                        module(*tensors)
                        if names is None
                        else module(**dict(zip(names, tensors, strict=True)))
                    )
            finally:
                module.train(was_training)
            return _first_tensor(out).numpy()

        return run

    names = quantized.graph.inputs if len(quantized.graph.inputs) > 1 else None
    return {"float": stage(model, names), "fake-quantized": stage(quantized, names)}


def _first_tensor(outputs: Any) -> Tensor:
    flat, _ = tree_flatten(outputs)
    return next(value for value in flat if isinstance(value, Tensor))


def peek(data: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and all of them."""
    iterator = iter(data)
    try:
        head = next(iterator)
    except StopIteration:
        raise DataError(
            "the data has no batch: it is empty, or an iterator that was used before"
        ) from None
    return head, itertools.chain([head], iterator)


class _Held:
    """The first samples of a stream, kept for the proof."""

    def __init__(self, n: int) -> None:
        self.missing = n
        self.batches: list[Any] = []

    def watch(self, data: Iterator[Any]) -> Iterator[Any]:
        for batch in data:
            if self.missing > 0:
                self.batches.append(batch)
                self.missing -= _size(batch)
            yield batch

    def first(self) -> Iterator[Any]:
        """The kept batches, the last one cut to the number that was asked for."""
        for index, batch in enumerate(self.batches):
            last = index == len(self.batches) - 1
            yield _cut(batch, _size(batch) + min(self.missing, 0)) if last else batch


def _cut(batch: Any, size: int) -> Any:
    if isinstance(batch, dict):
        return {name: value[:size] for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(value[:size] for value in batch)
    return batch[:size]


def _size(batch: Any) -> int:
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch
    return len(first[0]) if isinstance(first, tuple | list) else len(first)
