"""ONNX Runtime: run an artifact, look at any tensor of codes, and see which kernels it runs."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from halfstep.errors import ExportError
from halfstep.program.saturation import PROPERTY, PROVEN
from halfstep.runtimes.onnx_file import constants, expose, load

Values = NDArray[np.generic]

# Kernels that compute on codes; everything else in a fused graph computes on float32 or moves.
INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "QLinearAdd",
        "QLinearMul",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "QLinearConcat",
        "QLinearLeakyRelu",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    }
)


class OnnxRuntimeModel:
    """An ONNX file, open for running on the CPU.

    Args:
        path: the file.
        sites: names of tensors of codes to return beside the outputs.
        threads: threads inside one operation; 0 is one a core.
        spin: threads wait actively between operations, as is the runtime's own default: for
            measuring speed. Without it they leave the cores to whoever else computes.

    Raises:
        ExportError: the file is not a model that ONNX Runtime opens, or lacks a site.
    """

    def __init__(
        self, path: str | Path, sites: Collection[str] = (), threads: int = 0, spin: bool = False
    ) -> None:
        self.path = Path(path)
        model = load(self.path)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.sites = tuple(sites)
        expose(model, self.sites, self.path)
        options = _options(threads, model)
        if not has_vnni() and not is_proven(model) and may_saturate(model):
            # Kernels for other CPUs add pairs of products in int16, unless weights become uint8.
            options.add_session_config_entry("session.x64quantprecision", "1")
            _separate_weights(model)
        self._proto = model.SerializeToString()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        try:
            self.session = onnxruntime.InferenceSession(
                self._proto, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base class but this
            raise ExportError(f"{self.path}: ONNX Runtime refuses it: {error}") from error
        self._inputs = [value.name for value in self.session.get_inputs()]

    def run(self, inputs: Sequence[Values]) -> Mapping[str, Values]:
        """Outputs and asked-for sites by name, for inputs in the order of the file.

        Raises:
            ExportError: inputs that the file does not take.
        """
        names = [*self.outputs, *(site for site in self.sites if site not in self.outputs)]
        try:
            found = self.session.run(names, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:  # as above
            raise ExportError(f"{self.path}: ONNX Runtime refuses the inputs: {error}") from error
        return dict(zip(names, found, strict=True))

    def kernels(self) -> dict[str, str]:
        """For each node that is left after fusion, by the name of its first output, its kernel."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fused.onnx"
            options = _options(0, onnx.load_from_string(self._proto))
            options.optimized_model_filepath = str(file)
            onnxruntime.InferenceSession(self._proto, options, providers=["CPUExecutionProvider"])
            fused = onnx.load(str(file))
        return {node.output[0]: node.op_type for node in fused.graph.node}

    def constants(self) -> dict[str, Values]:
        """Weights, biases, scales and zero points by the names that the writer gives them."""
        return constants(self.path)

    def integer_kernel_of(self, sites: Collection[str]) -> dict[str, bool]:
        """For each site, whether an integer kernel makes it; layout changes are looked through."""
        kernels = self.kernels()
        integer = [name for name, kernel in kernels.items() if kernel in INTEGER_KERNELS]
        made = {_without_suffix(name, sites) for name in integer}
        return {site: site in made for site in sites}


def _without_suffix(name: str, sites: Collection[str]) -> str:
    """The site that a fused node's output stands for: the runtime appends to names."""
    if name in sites:
        return name
    candidates = [site for site in sites if name.startswith(site)]
    return max(candidates, key=len, default=name)


def _options(threads: int, model: Any) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if _int8_activations(model):
        # They are fused only on request.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options


def _int8_activations(model: onnx.ModelProto) -> bool:
    int8 = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    return any(n.op_type == "QuantizeLinear" and n.input[2] in int8 for n in model.graph.node)


@cache
def has_vnni() -> bool:
    """Whether this CPU adds products of uint8 and int8 in int32, as far as Linux says."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def is_proven(model: onnx.ModelProto) -> bool:
    """Whether the writer proved that no sum of two products leaves int16 (``prove_sums``)."""
    return any((p.key, p.value) == (PROPERTY, PROVEN) for p in model.metadata_props)


def may_saturate(model: onnx.ModelProto) -> bool:
    """Whether two products of uint8 codes and the model's int8 weights may leave int16 together.

    Looks at the largest weight alone: for files that say nothing of a proof.
    """
    if _int8_activations(model):
        return False
    weights = (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    codes = (onnx.numpy_helper.to_array(tensor).astype(np.int16) for tensor in weights)
    return any(2 * 255 * int(np.abs(w).max(initial=0)) > np.iinfo(np.int16).max for w in codes)


def _separate_weights(model: onnx.ModelProto) -> None:
    """A weight for each reader: the runtime makes them uint8 one by one, the shared one twice."""
    shared = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        for position, name in enumerate(node.input):
            if name in seen:
                copied = model.graph.initializer.add()
                copied.CopyFrom(shared[name])
                copied.name = node.input[position] = f"{name}/{index}"
            elif name in shared:
                seen.add(name)
