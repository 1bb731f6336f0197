"""The main verb: a float model in, a proven integer artifact out."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from halfstep import pair_repair, scale_repair
from halfstep.catalog import find
from halfstep.core.target import Target, resolve
from halfstep.data import NO_BATCH, example_of, iterate, samples_in
from halfstep.errors import DataError
from halfstep.files import Contents, read_contents, size_of
from halfstep.graph.eager import original
from halfstep.graph.insert import QuantizedModel
from halfstep.journal import Journal
from halfstep.lower import lower
from halfstep.origin import DataHash, Origin
from halfstep.program.ir import IntProgram
from halfstep.progress import Progress, silent
from halfstep.recipes.choices import check_options
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
        **choices: the recipe's own options, and those of ``make_plan``: weights, activations,
            calibrator, ...

    Raises:
        HalfstepError: see ``halfstep.errors``; the message names the site.

    Example:
        result = halfstep.quantize(model, batches, target="onnxruntime")
        result.save("out")
    """
    table: Target = find("target", target)
    check_options(recipe, choices, also=("target", "recipe", "verify_samples", "progress"))
    run = find("recipe", recipe)
    model = original(model)
    journal = Journal()
    head, whole = peek(data)
    example = example_of(head, model.forward, torch.as_tensor)
    keywords = tuple(example) if isinstance(example, Mapping) else ()
    held = _Held(verify_samples, keywords)
    hashed = DataHash(keywords)
    stream = hashed.watch(held.watch(whole))
    quantized: QuantizedModel = run(
        model, example, stream, target=target, journal=journal, progress=progress, **choices
    )
    origin = Origin(recipe, choices, hashed.found())
    held.complete(stream)
    if table.limits_scales:
        with journal.step("scales") as record:
            record.facts |= scale_repair.repair_facts(scale_repair.repair_scales(quantized))
    if table.pair_sum_bits is not None:
        with journal.step("pair sums") as record:
            record.facts |= pair_repair.repair_facts(pair_repair.repair_pair_sums(quantized))
    with journal.step("lower"):
        program = lower(quantized)
    if table.export is None:
        return Result(quantized, program, None, None, journal, origin)
    runs = table.run is not None and verify_samples > 0
    compared = stages(model, quantized) if runs else None
    artifact, verdict = _proven(program, table, held, compared, journal)
    return Result(quantized, program, artifact, verdict, journal, origin)


def _proven(
    program: IntProgram,
    target: Target,
    held: "_Held",
    compared: Mapping[str, Stage] | None,
    journal: Journal,
) -> tuple[tuple[str, Contents], Verdict | None]:
    """The artifact and, with stages to compare, the verdict on it."""
    assert target.export is not None and target.artifact is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.artifact
        with journal.step("export") as record:
            resolve(target.export)(program, path)
            record.facts["bytes"] = size_of(read_contents(path))
        verdict: Verdict | None = None
        if compared is not None:
            with journal.step("verify") as record:
                verdict = verify(program, path, held.first(), stages=compared)
                record.facts["samples"] = verdict.samples
        return (target.artifact, read_contents(path)), verdict


def stages(model: nn.Module, quantized: QuantizedModel) -> dict[str, Stage]:
    """The float and the fake-quantized model, as functions of arrays."""

    def stage(module: nn.Module, keywords: Sequence[str]) -> Stage:
        def run(inputs: Sequence[Values]) -> Values:
            tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs]
            was_training = module.training
            module.eval()
            try:
                with torch.inference_mode():
                    out = (
                        module(**dict(zip(keywords, tensors, strict=True)))
                        if keywords
                        else module(*tensors)
                    )
            finally:
                module.train(was_training)
            return _first_tensor(out).numpy()

        return run

    return {"float": stage(model, quantized.graph.keywords), "fake-quantized": stage(quantized, ())}


def _first_tensor(outputs: Any) -> Tensor:
    flat, _ = tree_flatten(outputs)
    return next(value for value in flat if isinstance(value, Tensor))


def peek(data: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and all of them."""
    iterator = iterate(data)
    try:
        head = next(iterator)
    except StopIteration:
        raise DataError(NO_BATCH) from None
    return head, itertools.chain([head], iterator)


class _Held:
    """The first samples of a stream, kept for the proof.

    Args:
        n: how many samples.
        keywords: names of the inputs in batches that are dicts.
    """

    def __init__(self, n: int, keywords: Sequence[str]) -> None:
        if not isinstance(n, int) or n < 0:
            raise DataError(f"verify_samples: asked for 0 or more, found {n!r}")
        self.missing = n
        self.keywords = keywords
        self.batches: list[Any] = []

    def watch(self, data: Iterator[Any]) -> Iterator[Any]:
        for batch in data:
            if self.missing > 0:
                self.batches.append(batch)
                self.missing -= samples_in(batch, self.keywords)
            yield batch

    def complete(self, stream: Iterator[Any]) -> None:
        """Read on, after a recipe that needed less data than the proof."""
        while self.missing > 0 and next(stream, None) is not None:
            pass

    def first(self) -> Iterator[Any]:
        """The kept batches, the last one cut to the number that was asked for."""
        for index, batch in enumerate(self.batches):
            last = index == len(self.batches) - 1
            size = samples_in(batch, self.keywords) + min(self.missing, 0)
            yield _cut(batch, size) if last else batch


def _cut(batch: Any, size: int) -> Any:
    """The first ``size`` samples of a batch."""
    if isinstance(batch, Mapping):
        return {name: _cut_value(value, size) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_cut_value(value, size) for value in batch)
    return _cut_value(batch, size)


def _cut_value(value: Any, size: int) -> Any:
    """What is no row of samples stays as it is: nobody reads it, or whoever does refuses it."""
    try:
        return value[:size]
    except (TypeError, IndexError, KeyError):
        return value
