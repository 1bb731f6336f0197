"""The proof: the program that Halfstep simulates and the artifact that it wrote, code for code.

The engine and the runtime get the same inputs; the codes of every site are compared. A float
kernel's last bit is nobody's promise, so codes that come straight from one are not counted: the
engine goes on from the runtime's own codes there, and everything behind it is compared again.

A target that promises a largest distance promises it for one operation on equal inputs. For such a
target the engine goes on from the runtime's codes at every site. A runtime that is not exact may
also fuse other operations when nobody looks, so the outputs of the file as it will run are compared
end to end, with the engine left to itself: any distance there is reported, and none is *exact*.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.target import Target, resolve
from halfstep.data import batches, check_classes, judges_classes
from halfstep.errors import DataError, ExportError, PlanError
from halfstep.program.engine import Engine, Run
from halfstep.program.ir import IntProgram, Op
from halfstep.verdict import SiteReport, Verdict

Values = NDArray[np.generic]
Stage = Callable[[Sequence[Values]], Values]


class Runtime(Protocol):
    """An artifact, open for running."""

    def run(self, inputs: Sequence[Values]) -> Mapping[str, Values]:
        """Outputs and sites by name."""
        ...

    def integer_kernel_of(self, sites: Sequence[str]) -> Mapping[str, bool]:
        """For each site, whether an integer kernel makes it."""
        ...

    def constants(self) -> Mapping[str, Values]:
        """Numbers of tensors by name, ``NAME/scale`` and ``NAME/zero_point``, as far as named."""
        ...


def verify(
    program: IntProgram,
    artifact: str | Path,
    data: Iterable[Any],
    *,
    stages: Mapping[str, Stage] | None = None,
    backend: str = "torch",
) -> Verdict:
    """Compare ``program`` with the ``artifact`` that was written from it.

    Args:
        program: from ``lower``.
        artifact: the file of the program's target.
        data: batches, in any form that ``quantize`` takes.
        stages: other models whose decisions are compared, by name: float, fake-quantized.
        backend: of the engine: "torch", "torch:cuda" or "numpy", the reference.

    Raises:
        PlanError: the target has no runtime.
        DataError: no batch, or one of a wrong form, shape or dtype.
        ExportError: the artifact is not one of this program.
    """
    target: Target = find("target", program.target)
    if target.run is None:
        raise PlanError(f"target '{target.name}' has no runtime: there is nothing to compare with")
    names = (*program.sites, *program.outputs)
    runtime: Runtime = resolve(target.run)(artifact, names)
    deployed: Runtime = resolve(target.run)(artifact, ())
    engine = Engine(program, backend)
    comparison = _Comparison(program, dict(stages or {}), target.bound)
    for inputs, labels in batches(data, program.inputs, np.asarray):
        engine.check_inputs(inputs)
        _check_finite(program, inputs, comparison.samples)
        found = runtime.run(inputs)
        comparison.add(engine, inputs, labels, found, deployed.run(inputs))
    return comparison.verdict(deployed)


class _Comparison:
    """What is known after some batches; nothing of a batch is kept."""

    def __init__(self, program: IntProgram, stages: dict[str, Stage], bound: int) -> None:
        self.program = program
        self.bound = bound
        self.stages = stages
        makers = {op.output: op for op in program.ops}
        self.ops = {site: makers[site] for site in program.sites}
        self.floats = {site for site, op in self.ops.items() if not comparable(program, op)}
        self.reports = {
            site: SiteReport(site, op.kind, str(op.execution), comparable=site not in self.floats)
            for site, op in self.ops.items()
        }
        for name in program.outputs:
            last = makers[name]
            of_codes = last.kind == "dequantize" or last.inputs[0] in program.sites
            proven = of_codes and not self.floats
            execution = str(last.execution)
            self.reports[name] = SiteReport(name, "output", execution, comparable=proven)
        self.anchored = set(self.ops) if bound else self.floats
        self.whole = {
            name: SiteReport(name, "output", "end to end")
            for name in (program.outputs if bound else ())
        }
        self.samples = 0
        self.same: dict[str, int] = {}
        self.right: dict[str, int] = {}
        self.labelled = 0

    def add(
        self,
        engine: Engine,
        inputs: Sequence[Values],
        labels: Values | None,
        found: Mapping[str, Values],
        outputs: Mapping[str, Values],
    ) -> None:
        """One batch: ``found`` with the sites exposed, ``outputs`` of the file as it will run."""
        anchors = {site: found[site] for site in self.anchored}
        run = engine.run(inputs, keep=self.program.sites, anchors=anchors)
        for site, values in run.kept.items():
            mine, theirs = (self._countable(site, v) for v in (values, found[site]))
            self.reports[site] = _updated(self.reports[site], mine, theirs, self.samples)
        # Without float islands the anchored run is the whole program on its own.
        free = run if not anchors else engine.run(inputs)
        if self.bound:
            self._compare_outputs(self.reports, run, found)
            self._compare_outputs(self.whole, free, outputs)
        else:
            self._compare_outputs(self.reports, free, outputs)
        decided = {name: stage(inputs) for name, stage in self.stages.items()}
        decided |= {"engine": free.outputs[0], "runtime": outputs[self.program.outputs[0]]}
        self._decide(decided, labels)
        self.samples += len(inputs[0])

    def _compare_outputs(
        self, reports: dict[str, SiteReport], run: Run, found: Mapping[str, Values]
    ) -> None:
        for name, real in zip(self.program.outputs, run.outputs, strict=True):
            mine, theirs = (self._in_steps(name, value) for value in (real, found[name]))
            reports[name] = _updated(reports[name], mine, theirs, self.samples)

    def _in_steps(self, name: str, real: Values) -> Values:
        """A real output as steps of its grid, exact where it came from codes."""
        source = next(op.inputs[0] for op in self.program.ops if op.output == name)
        grid = self.program.tensors[source].grid
        if grid is not None:
            return np.rint(real.astype(np.float64) / grid.scale)
        return self._countable(source, real) if source in self.ops else real

    def _countable(self, site: str, values: Values) -> Values:
        """Codes; for sums that were scaled to float32, integers in the order of the floats."""
        if self.program.tensors[site].grid is not None:
            return values
        bits = values.view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(2**31) - bits, bits)

    def _decide(self, outputs: Mapping[str, Values], labels: Values | None) -> None:
        if not all(judges_classes(output.shape) for output in outputs.values()):
            return
        if labels is not None:
            check_classes(labels, outputs["engine"].shape, self.samples)
        decisions = {name: output.argmax(axis=-1) for name, output in outputs.items()}
        for name, decision in decisions.items():
            if name != "engine":
                key = f"{name} and engine"
                self.same[key] = self.same.get(key, 0) + int(
                    (decision == decisions["engine"]).sum()
                )
            if labels is not None:
                self.right[name] = self.right.get(name, 0) + int((decision == labels).sum())
        self.labelled += 0 if labels is None else len(labels)

    def verdict(self, runtime: Runtime) -> Verdict:
        integer = runtime.integer_kernel_of([op.output for op in self.program.ops if op.macs])
        total = sum(op.macs for op in self.program.ops)
        fused = sum(op.macs for op in self.program.ops if integer.get(op.output, False))
        reasons = {op.module: op.reason for op in self.program.ops if op.reason}
        return Verdict(
            target=self.program.target,
            samples=self.samples,
            sites=tuple(self.reports.values()),
            bound=self.bound,
            end_to_end=tuple(self.whole.values()),
            cause=self._cause(integer, runtime),
            agreement={name: n / self.samples for name, n in self.same.items()},
            accuracy={name: n / self.labelled for name, n in self.right.items()},
            integer_coverage=self.program.integer_coverage(),
            integer_in_runtime=fused / total if total else None,
            floats=reasons,
        )

    def _cause(self, integer: Mapping[str, bool], runtime: Runtime) -> str:
        """All inputs of the first differing operation are equal: the cause lies in itself."""
        if not any(report.comparable for report in self.reports.values()):
            return "nothing was compared: no operation makes codes from codes"
        first = next((r for r in self.reports.values() if r.comparable and r.mismatches), None)
        if first is None:
            return ""
        if first.site not in self.ops:
            return f"{first.site}: the artifact gives other outputs than with its sites exposed"
        op = self.ops[first.site]
        kernel = op.execution in (Execution.INTEGER, Execution.SCALED)
        if other := _other_constant(self.program, op, runtime.constants()):
            cause = f"{other}: the artifact was not made from this program, or changed since"
        elif kernel and op.macs and not integer.get(op.output, False):
            cause = "fusion: the runtime runs it in float32"
        elif op.execution is Execution.COPY:
            cause = "layout: codes that should only move were changed"
        elif op.kind == "quantize":
            cause = "input: the runtime rounds real inputs in another way"
        elif first.largest == 1:
            cause = "rounding: another formula, one code apart"
        elif op.macs:
            cause = "saturation or overflow of partial sums, or other weights or biases"
        else:
            cause = "another grid or formula"
        return f"{first.site}: {op.kind}: {cause}"


def _other_constant(program: IntProgram, op: Op, found: Mapping[str, Values]) -> str:
    """The first number of ``op`` that the artifact has otherwise; empty if it has none."""
    for name in (*op.inputs, op.output):
        tensor = program.tensors[name]
        numbers = {} if tensor.data is None else {name: tensor.data}
        if tensor.grid is not None:
            numbers[f"{name}/scale"] = tensor.grid.scale
            numbers[f"{name}/zero_point"] = tensor.grid.zero_point
        for what, mine in numbers.items():
            theirs = found.get(what)
            if theirs is None:
                continue
            if theirs.shape != mine.shape:
                return f"{what} has shape {list(theirs.shape)} in it, not {list(mine.shape)}"
            if n_other := int(np.count_nonzero(theirs != mine)):
                return f"{what} has other numbers in it, {n_other} of {mine.size}"
    return ""


def _check_finite(program: IntProgram, inputs: Sequence[Values], offset: int) -> None:
    for name, value in zip(program.inputs, inputs, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DataError(f"{name}:in: NaN or infinity after sample {offset}; clean the data")


def comparable(program: IntProgram, op: Op) -> bool:
    """Whether the codes that ``op`` makes are determined by codes, or by a quantized input."""
    return op.kind != "quantize" or op.inputs[0] in program.inputs


def _updated(report: SiteReport, mine: Values, theirs: Values, offset: int) -> SiteReport:
    if mine.shape != theirs.shape:
        raise ExportError(
            f"{report.site}: the runtime gives codes of shape {theirs.shape}, "
            f"the engine {mine.shape}"
        )
    report = replace(report, compared=report.compared + mine.size)
    if np.array_equal(mine, theirs):
        return report
    with np.errstate(invalid="ignore"):  # what is no number is a code of nothing
        distance = np.abs(mine.astype(np.int64) - theirs.astype(np.int64))
    index = tuple(int(i) for i in np.unravel_index(int((distance > 0).argmax()), distance.shape))
    return replace(
        report,
        mismatches=report.mismatches + int(np.count_nonzero(distance)),
        largest=max(report.largest, int(distance.max())),
        first=report.first or (offset + index[0], *index[1:]),
    )
