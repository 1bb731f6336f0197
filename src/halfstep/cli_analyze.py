"""The command ``halfstep analyze``: where a model loses by quantization, and what to try."""

from dataclasses import replace
from typing import Annotated

import torch
import typer
from rich.console import Console

from halfstep.cli_advice import on_command_line
from halfstep.data import example_of
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import capture
from halfstep.graph.insert import prepare
from halfstep.graph.planner import make_plan
from halfstep.job import print_line
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
    Size,
    Std,
    TargetName,
    Weights,
    WeightType,
    chosen,
    preprocessing,
)
from halfstep.progress import on_terminal, silent
from halfstep.quantize import peek
from halfstep.report.analysis import analysis_text
from halfstep.search.analyze import analyze as run_analysis
from halfstep.search.samples import keeping
from halfstep.sources import load_data, load_model


def analyze(  # noqa: PLR0913 (one parameter an option)
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
    samples: Annotated[int, typer.Option(help="measure on the first of DATA", min=1)] = 64,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, agreement, cosine, kl, mse or sqnr")
    ] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    quiet: Quiet = False,
) -> None:
    """Find out what MODEL loses by quantization, where, and what to try about it."""
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
    head, whole = peek(load_data(data, preprocessing(size, mean, std, batch_size, data)))
    loaded = load_model(model, weights)
    graph = capture(loaded, example_of(head, loaded.forward, torch.as_tensor))
    quantized = prepare(graph, make_plan(graph, target, **choices))
    progress = silent if quiet else on_terminal
    first: list[tuple[torch.Tensor, ...]] = []
    calibrate(quantized, keeping(whole, graph.inputs, samples, first), progress=progress)
    found = run_analysis(quantized, first, metric=metric, progress=progress)
    found = replace(found, advice=tuple(map(on_command_line, found.advice)))
    if quiet:
        for line in found.advice:
            print_line(line)
    else:
        Console().print(analysis_text(found))
