"""The command line: ``halfstep quantize | plan | analyze | verify | export | prove | ...``."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from typer.core import TyperGroup

from halfstep.cli_analyze import analyze
from halfstep.cli_export import export
from halfstep.data import example_of
from halfstep.errors import DataError, HalfstepError
from halfstep.graph.capture import capture
from halfstep.graph.planner import make_plan
from halfstep.images import Preprocessing
from halfstep.job import print_line, run_job
from halfstep.lock import Lock
from halfstep.options import (
    ActivationType,
    BatchSize,
    Calibrator,
    Data,
    FirstLast,
    GroupSize,
    Mean,
    Model,
    OptionalData,
    PerTensor,
    Pow2,
    Quiet,
    Samples,
    Settings,
    Size,
    Std,
    TargetName,
    Weights,
    WeightType,
    chosen,
    preprocessing,
    settings,
)
from halfstep.program.saturation import prove_sums
from halfstep.program.serialize import DESCRIPTION, load_program
from halfstep.progress import on_terminal, silent
from halfstep.quantize import peek
from halfstep.recipes.choices import check_options
from halfstep.report.coverage import planned_coverage
from halfstep.report.listing import listing
from halfstep.report.table import ending, verdict_text
from halfstep.result import check_replaceable, versions
from halfstep.saved import load_plan, model_stages, open_saved
from halfstep.sources import load_data, load_model, samples_of
from halfstep.verify import verify as run_verify

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar10"


class _Commands(TyperGroup):
    """Errors that Halfstep raises on purpose are one line on standard error, and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HalfstepError as error:
            line = " ".join(f"error: {error}".split())
            console = Console(stderr=True)
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    help="Quantize a PyTorch model, and prove that what was simulated is what runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def quantize(  # noqa: PLR0913 (one parameter an option)
    *,
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder to write; replaced as a whole")],
    target: TargetName = "onnxruntime",
    recipe: Annotated[str, typer.Option(help="see: halfstep list recipes")] = "ptq",
    weights: Weights = None,
    weight_type: WeightType = None,
    activation_type: ActivationType = None,
    calibrator: Calibrator = None,
    weight_calibrator: Calibrator = None,
    per_tensor: PerTensor = False,
    group_size: GroupSize = None,
    pow2: Pow2 = False,
    first_last: FirstLast = None,
    options: Settings = None,
    plan: Annotated[Path | None, typer.Option(help="instead of types: a plan.yaml")] = None,
    test_data: Annotated[str | None, typer.Option(help="verify on this, not on DATA")] = None,
    samples: Samples = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
) -> None:
    """Quantize MODEL, prove the artifact, and write both to a folder."""
    check_replaceable(out)
    choices = chosen(
        per_tensor,
        pow2,
        weights=weight_type,
        activations=activation_type,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        group_size=group_size,
        first_last=first_last,
    )
    if plan is not None:
        choices["plan"] = load_plan(plan)
    asked = settings(options, choices)
    check_options(recipe, asked)
    images = preprocessing(size, mean, std, batch_size)
    test = None if test_data is None else load_data(test_data, images)
    calibration = load_data(data, images)
    loaded = load_model(model, weights)
    choices |= {"target": target, "recipe": recipe, **asked}
    raise typer.Exit(run_job(loaded, calibration, test, out, samples, quiet, **choices))


@app.command()
def plan(  # noqa: PLR0913 (one parameter an option)
    *,
    model: Model,
    data: Data,
    target: TargetName = "onnxruntime",
    weights: Weights = None,
    weight_type: WeightType = None,
    activation_type: ActivationType = None,
    calibrator: Calibrator = None,
    weight_calibrator: Calibrator = None,
    per_tensor: PerTensor = False,
    group_size: GroupSize = None,
    pow2: Pow2 = False,
    first_last: FirstLast = None,
    out: Annotated[Path | None, typer.Option(help="write the plan as YAML, to edit it")] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
) -> None:
    """Show what would be done with every site of MODEL, what would stay float, and why."""
    choices = chosen(
        per_tensor,
        pow2,
        weights=weight_type,
        activations=activation_type,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        group_size=group_size,
        first_last=first_last,
    )
    head, _ = peek(load_data(data, preprocessing(size, mean, std, batch_size)))
    loaded = load_model(model, weights)
    graph = capture(loaded, example_of(head, loaded.forward, torch.as_tensor))
    made = make_plan(graph, target, **choices)
    print_line(str(made))
    print_line(f"not integer: {len(made.floats)} of {len(made.executions)} operations")
    print_line(f"integer MACs: {planned_coverage(graph, made)}")
    if out is not None:
        made.save(out)
        print_line(f"written to {out}")


app.command()(analyze)
app.command()(export)


@app.command()
def verify(  # noqa: PLR0913 (one parameter an option)
    *,
    saved: Annotated[Path, typer.Argument(help="a folder that quantize wrote, or its artifact")],
    data: OptionalData = None,
    lock: Annotated[Path | None, typer.Option(help="a lock.json that it must match")] = None,
    model: Annotated[str | None, typer.Option(help="the float model, to compare it too")] = None,
    weights: Weights = None,
    samples: Samples = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
) -> None:
    """Prove a saved artifact again, on other data or on another machine."""
    if lock is not None and not _matches(Lock.load(lock), saved):
        raise typer.Exit(1)
    if data is None:
        if lock is None:
            raise DataError("verify: give --data to run it on, or a --lock to compare it with")
        return
    opened = open_saved(saved)
    batches = load_data(data, preprocessing(size, mean, std, batch_size))
    compared = {}
    if model is not None:
        loaded = load_model(model, weights)
        head, batches = peek(batches)
        compared = model_stages(opened, loaded, example_of(head, loaded.forward, torch.as_tensor))
    shown = (silent if quiet else on_terminal)(batches, "verify")
    verdict = run_verify(
        opened.program,
        opened.artifact,
        samples_of(shown, opened.program.inputs, samples),
        stages=compared,
    )
    Console().print(verdict_text(verdict) if quiet else ending(verdict), soft_wrap=True)
    if compared and "fake-quantized" not in compared:
        print_line("no fake-quantized model: MODEL with the saved grids gives another program")
    raise typer.Exit(verdict.exit_code)


def _matches(lock: Lock, saved: Path) -> bool:
    """Print whether the files in ``saved`` are the locked ones, and which versions are not."""
    difference = lock.first_difference(saved if (saved / DESCRIPTION).exists() else saved.parent)
    print_line(f"lock: {difference or 'artifact, program and plan are the locked ones'}")
    for line in lock.other_versions(versions()):
        print_line(f"lock: {line}")
    return not difference


@app.command()
def prove(
    saved: Annotated[Path, typer.Argument(help="a folder that quantize wrote")],
    accumulator: Annotated[
        str, typer.Option(help="int16_pairs (CPUs without VNNI), int24 or int32")
    ] = "int16_pairs",
) -> None:
    """Bound the sums of products of a saved program, over all inputs that there can be."""
    proof = prove_sums(load_program(saved), accumulator)
    print_line(str(proof))
    raise typer.Exit(int(not proof.safe))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="targets, recipes, calibrators, ...")] = "",
) -> None:
    """List the methods and targets of the catalog."""
    for table in listing(what):
        Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("out/demo"),
    quiet: Quiet = False,
) -> None:
    """Quantize the example network of the source checkout, and verify it on 1,000 images."""
    model, data = EXAMPLE / "resnet.py", EXAMPLE / "data.py"
    if not model.is_file():
        raise DataError(
            f"demo: there is no {'/'.join(EXAMPLE.parts[-2:])} beside the package: the example is "
            "a part of the source checkout; install that with 'pip install --editable .'"
        )
    check_replaceable(out)
    images = Preprocessing()
    calibration = load_data(f"{data}:calibration", images)
    test = load_data(f"{data}:test", images)
    loaded = load_model(f"{model}:resnet20")
    raise typer.Exit(run_job(loaded, calibration, test, out, None, quiet))


def main() -> None:
    """The entry point of the installed command."""
    app(prog_name="halfstep")
