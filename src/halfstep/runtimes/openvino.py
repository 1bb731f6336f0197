"""OpenVINO: run an artifact on the CPU, look at any tensor of codes, and see which kernels it runs.

Float operations are asked to run in float32: on CPUs with bfloat16 the runtime's own choice would
change what a float island gives.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ExportError, RuntimeUnavailableError
from halfstep.runtimes.onnx_file import constants, expose, load

Values = NDArray[np.generic]

# Layers of the runtime's graph that add products of codes, if their kernel is an integer one.
_SUMS_OF_PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_INTEGER_KERNEL = "_I8"


class OpenVinoModel:
    """An ONNX file, open for running on the CPU.

    Args:
        path: the file.
        sites: names of tensors of codes to return beside the outputs.
        threads: threads of one inference; 0 is one a core.
        spin: taken as other runtimes take it; how this one waits cannot be chosen.

    Raises:
        RuntimeUnavailableError: OpenVINO is not installed.
        ExportError: the file is not a model that OpenVINO opens, or lacks a site.
    """

    def __init__(
        self, path: str | Path, sites: Collection[str] = (), threads: int = 0, spin: bool = False
    ) -> None:
        del spin
        self.path = Path(path)
        model = load(self.path)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.sites = tuple(sites)
        expose(model, self.sites, self.path)
        self._inputs = [value.name for value in model.graph.input]
        core = _openvino().Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            read = core.read_model(io.BytesIO(model.SerializeToString()))
            self.compiled = core.compile_model(read, "CPU", options)
            # An input that nothing reads is not an input of the compiled model.
            self._read = {name for port in self.compiled.inputs for name in port.get_names()}
        except RuntimeError as error:
            raise ExportError(f"{self.path}: OpenVINO refuses it: {error}") from error

    def run(self, inputs: Sequence[Values]) -> Mapping[str, Values]:
        """Outputs and asked-for sites by name, for inputs in the order of the file.

        Raises:
            ExportError: inputs that the file does not take.
        """
        named = dict(zip(self._inputs, inputs, strict=True))
        try:
            found = self.compiled({name: named[name] for name in named if name in self._read})
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{self.path}: OpenVINO refuses the inputs: {error}") from error
        return {
            name: np.array(values) for port, values in found.items() for name in port.get_names()
        }

    @cached_property
    def layers(self) -> tuple["Layer", ...]:
        """What the compiled model runs, in order."""
        return tuple(_layers(self.compiled))

    def constants(self) -> dict[str, Values]:
        """Weights, biases, scales and zero points by the names that the writer gives them."""
        return constants(self.path)

    def integer_kernel_of(self, sites: Collection[str]) -> dict[str, bool]:
        """For each site, whether an integer kernel computes the sums of products behind it."""
        sums = [
            layer
            for layer in self.layers
            if layer.kind in _SUMS_OF_PRODUCTS and layer.kernel.endswith(_INTEGER_KERNEL)
        ]
        names = {name for layer in sums for name in layer.sources}
        return {site: any(name.startswith(f"{site}/") for name in names) for site in sites}


class Layer:
    """One layer of a compiled model.

    Attributes:
        kind: what it computes, such as ``"Convolution"``.
        kernel: the primitive that runs, such as ``"brgconv_avx512_1x1_I8"``.
        sources: the names of the file's nodes that it computes.
    """

    def __init__(self, kind: str, kernel: str, sources: tuple[str, ...]) -> None:
        self.kind, self.kernel, self.sources = kind, kernel, sources


def _layers(compiled: Any) -> Iterator[Layer]:
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, kernel, sources = (
            facts[key].astype(str) if key in facts else ""
            for key in ("layerType", "primitiveType", "originalLayersNames")
        )
        yield Layer(kind, kernel, tuple(sources.split(",")))


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        message = "target 'openvino' needs OpenVINO: pip install 'halfstep[openvino]'"
        raise RuntimeUnavailableError(message) from error
    return openvino
