"""The options of the command line, and what they stand for in the library."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from halfstep.errors import DataError, PlanError, UnknownNameError
from halfstep.images import BATCH_SIZE, Preprocessing
from halfstep.sources import is_callable

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:callable or path/to/file.py:callable"),
]
Data = Annotated[
    str, typer.Option(metavar="DATA", help="image folder, .npz file, or callable as for MODEL")
]
OptionalData = Annotated[
    str | None, typer.Option(metavar="DATA", help="as for quantize; not needed with --lock")
]
Weights = Annotated[Path | None, typer.Option(help="safetensors file for MODEL")]
TargetName = Annotated[str, typer.Option("--target", help="see: halfstep list targets")]
WeightType = Annotated[str | None, typer.Option(help="such as int8_narrow or int4")]
ActivationType = Annotated[str | None, typer.Option(help="such as uint8")]
Calibrator = Annotated[str | None, typer.Option(help="see: halfstep list calibrators")]
PerTensor = Annotated[bool, typer.Option("--per-tensor", help="one scale for all channels")]
GroupSize = Annotated[int | None, typer.Option(help="one scale for so many inputs", min=1)]
Pow2 = Annotated[bool, typer.Option("--pow2", help="scales are powers of two")]
FirstLast = Annotated[str | None, typer.Option(help="type of the first and the last weights")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="an option of the recipe, see: halfstep list recipes; may be repeated",
    ),
]
Size = Annotated[int | None, typer.Option(help="resize and crop images to a square", min=1)]
Mean = Annotated[str | None, typer.Option(help="of images scaled to 0..1, such as 0.5,0.4,0.4")]
Std = Annotated[str | None, typer.Option(help="of images scaled to 0..1, such as 0.2,0.2,0.2")]
BatchSize = Annotated[int | None, typer.Option(help="for folders and .npz; 32 if not given", min=1)]
Samples = Annotated[int | None, typer.Option(help="verify on so many samples", min=1)]
Quiet = Annotated[bool, typer.Option("--quiet", help="print the verdict alone")]


def chosen(per_tensor: bool, pow2: bool, **given: str | int | None) -> dict[str, Any]:
    """What was asked for, by the names that ``make_plan`` has for it."""
    choices: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    choices |= {"per_channel": False} if per_tensor else {}
    return choices | ({"pow2": True} if pow2 else {})


def settings(given: Sequence[str] | None, choices: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--set option=value`` stands for, with values read as YAML.

    Args:
        given: the texts behind ``--set``.
        choices: what other options of the command line ask for already.

    Raises:
        PlanError: a text of another form, or an option that is given twice.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or not equals:
            raise PlanError(f"--set {text}: write --set option=value")
        if name in found or name in choices:
            raise PlanError(f"--set {text}: {name} is given twice; keep one")
        found[name] = _yaml(text, value)
    return found


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Errors about data begin with the option that the data were given by."""
    try:
        yield
    except (DataError, UnknownNameError) as error:
        raise type(error)(f"{option}: {error}") from error


def _yaml(text: str, value: str) -> Any:
    """A value as YAML has it, and ``1e-3``, which YAML takes for a word, as a number."""
    if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value.strip()):
        return float(value)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise PlanError(f"--set {text}: {value!r} is not YAML; quote it") from error


def preprocessing(
    size: int | None,
    mean: str | None,
    std: str | None,
    batch_size: int | None,
    *sources: str | None,
) -> Preprocessing:
    """How images become inputs.

    Raises:
        DataError: an option that none of the ``sources`` reads, all being callables.
    """
    given = {"--size": size, "--mean": mean, "--std": std, "--batch-size": batch_size}
    asked = [option for option, value in given.items() if value is not None]
    read = [source for source in sources if source is not None]
    if size is not None and not any(Path(source).is_dir() for source in read):
        raise DataError(
            f"--size: it is for image folders, and {' and '.join(read)} is none. Leave the option "
            "out; what arrays or a callable give is taken as it is"
        )
    if asked and all(map(is_callable, read)):
        raise DataError(
            f"{asked[0]}: it is for image folders and .npz files, and {' and '.join(read)} "
            "gives batches as the model takes them. Leave the option out, and do it there"
        )
    return Preprocessing(
        size, _numbers("--mean", mean), _numbers("--std", std), batch_size or BATCH_SIZE
    )


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{option}: asked for numbers such as 0.5,0.4,0.4, found {text}") from None
