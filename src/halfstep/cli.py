"""The command line: ``halfstep quantize | plan | analyze | verify | export | prove | ...``."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from typer.core import TyperGroup

from halfstep.cli_advice import on_command_line
from halfstep.cli_analyze import analyze
from halfstep.cli_export import export
from halfstep.cli_verify import prove, verify
from halfstep.data import example_of
from halfstep.errors import DataError, HalfstepError
from halfstep.graph.capture import capture
from halfstep.graph.plan import Plan
from halfstep.graph.planner import make_plan
from halfstep.images import Preprocessing
from halfstep.job import print_line, run_job
from halfstep.options import (
    ActivationType,
    BatchSize,
    Calibrator,
    Data,
    FirstLast,
    GroupSize,
    Mean,
    Model,
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
    naming,
    preprocessing,
    settings,
)
from halfstep.quantize import peek
from halfstep.recipes.choices import check_options
from halfstep.report.coverage import planned_coverage
from halfstep.report.listing import listing
from halfstep.result import check_replaceable
from halfstep.sources import load_data, load_model

# Typer has its own copy of click, or click itself, and exports this class below it alone.
_UsageError: Any = typer.BadParameter.__mro__[1]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar10"


class _Commands(TyperGroup):
    """What goes wrong on purpose is one line on standard error, and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HalfstepError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from error
        except _UsageError as error:
            raise _misused(error, ctx) from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options in front of the command; with none at all, the help is shown."""
        asked = bool(args)  # which parsing takes apart
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if not asked:
                raise
            raise _misused(error, ctx) from error


def _misused(error: Any, ctx: Any) -> typer.Exit:
    """Say what is wrong with the arguments of which command."""
    command = f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip()
    said = error.format_message().rstrip(".")
    stop = "" if said.endswith("?") else "."
    _complain(f"{command}: {said}{stop} See {command} --help")
    return typer.Exit(2)


def _complain(text: str) -> None:
    line = " ".join(on_command_line(text).split())
    console = Console(stderr=True)
    console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


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
    batch_size: BatchSize = None,
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
        choices["plan"] = Plan.load(plan)
    asked = settings(options, choices)
    check_options(recipe, asked)
    images = preprocessing(size, mean, std, batch_size, data, test_data)
    with naming("--test-data"):
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
    batch_size: BatchSize = None,
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
    head, _ = peek(load_data(data, preprocessing(size, mean, std, batch_size, data)))
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


app.command()(verify)
app.command()(prove)


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
