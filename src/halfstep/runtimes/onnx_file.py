"""ONNX files for a runtime: read whole, with inner tensors as outputs."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from halfstep.errors import ExportError


def load(path: Path) -> onnx.ModelProto:
    """The model at ``path``.

    Raises:
        ExportError: it is not a complete ONNX file.
    """
    # Of onnx's own choosing, so not a dependency of ours.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path))
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path}: not a complete ONNX file ({error})") from error
    if not model.graph.node:  # an empty file is a valid message without a graph
        raise ExportError(f"{path}: not a complete ONNX file (it has no operations)")
    return model


def constants(path: Path) -> dict[str, NDArray[Any]]:
    """The constants of the model at ``path``, by their names."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in load(path).graph.initializer}


def expose(model: onnx.ModelProto, sites: Collection[str], path: Path) -> None:
    """Make outputs of the tensors named ``sites``.

    Raises:
        ExportError: the model at ``path`` makes no such tensor.
    """
    made = {name for node in model.graph.node for name in node.output}
    known = {value.name: value for value in model.graph.value_info}
    outputs = {value.name for value in model.graph.output}
    for site in sites:
        if site not in made:
            raise ExportError(f"{path}: it has no tensor {site}; was it made from this program?")
        if site not in outputs:
            model.graph.output.append(known.get(site) or onnx.ValueInfoProto(name=site))
