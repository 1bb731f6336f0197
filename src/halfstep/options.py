"""The options of the command line, and what they stand for in the library."""

from pathlib import Path
from typing import Annotated, Any

import typer

from halfstep.errors import DataError
from halfstep.images import Preprocessing

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:callable or path/to/file.py:callable"),
]
Data = Annotated[
    str, typer.Option(metavar="DATA", help="image folder, .npz file, or callable as for MODEL")
]
Weights = Annotated[Path | None, typer.Option(help="safetensors file for MODEL")]
TargetName = Annotated[str, typer.Option("--target", help="see: halfstep list targets")]
WeightType = Annotated[str | None, typer.Option(help="such as int8_narrow or int4")]
ActivationType = Annotated[str | None, typer.Option(help="such as uint8")]
Calibrator = Annotated[str | None, typer.Option(help="see: halfstep list calibrators")]
PerTensor = Annotated[bool, typer.Option("--per-tensor", help="one scale for all channels")]
FirstLast = Annotated[str | None, typer.Option(help="type of the first and the last weights")]
Size = Annotated[int | None, typer.Option(help="resize and crop images to a square", min=1)]
Mean = Annotated[str | None, typer.Option(help="of images scaled to 0..1, such as 0.5,0.4,0.4")]
Std = Annotated[str | None, typer.Option(help="of images scaled to 0..1, such as 0.2,0.2,0.2")]
BatchSize = Annotated[int, typer.Option(help="for folders and .npz files", min=1)]
Samples = Annotated[int | None, typer.Option(help="verify on so many samples", min=1)]
Quiet = Annotated[bool, typer.Option("--quiet", help="print the verdict alone")]


def chosen(per_tensor: bool, **given: str | None) -> dict[str, Any]:
    """What was asked for, by the names that ``make_plan`` has for it."""
    choices: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return choices | ({"per_channel": False} if per_tensor else {})


def preprocessing(
    size: int | None, mean: str | None, std: str | None, batch_size: int
) -> Preprocessing:
    """How images become inputs."""
    return Preprocessing(size, _numbers("--mean", mean), _numbers("--std", std), batch_size)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{option}: asked for numbers such as 0.5,0.4,0.4, found {text}") from None
