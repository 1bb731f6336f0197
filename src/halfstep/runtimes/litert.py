"""LiteRT: run a ``.tflite`` file sample by sample, and look at any tensor of codes.

The same file runs by two sets of kernels with two arithmetics: the reference kernels, and the
default ones, which hand what they can to XNNPACK. What a delegate computes stays inside of it, so
tensors that are asked for become outputs of a copy of the file in memory.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from halfstep.core.elementwise import QUANTIZE
from halfstep.errors import ExportError, RuntimeUnavailableError
from halfstep.formats.layout import LAYOUT, Layout
from halfstep.formats.tflite import SIGNATURE, packed, schema

Values = NDArray[np.generic]

# Operators that compute; all others move values or stand at the edges.
_COMPUTING = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"),
        *("ADD", "SUB", "MUL", "MEAN", "AVERAGE_POOL_2D", "SOFTMAX", "GATHER", "RELU"),
        *("LOGISTIC", "TANH", "GELU", "HARD_SWISH", "LEAKY_RELU"),
    }
)
_INTEGERS = (np.int8, np.int32)
_DELEGATE = "DELEGATE"


class LiteRTModel:
    """A ``.tflite`` file, open for running on the CPU.

    Args:
        path: the file.
        sites: names of tensors of codes to return beside the outputs.
        threads: threads inside one operation; 0 is one a core.
        spin: nothing; the threads of this runtime wait in one way.

    Raises:
        ExportError: the file is not a model that LiteRT opens, or was not written by Halfstep, or
            lacks a site.
        RuntimeUnavailableError: ai-edge-litert is missing.
    """

    resolver: ClassVar[str]

    def __init__(
        self, path: str | Path, sites: Collection[str] = (), threads: int = 0, spin: bool = False
    ) -> None:
        del spin
        self.path = Path(path)
        content = self._read()
        self._check(content)
        model = schema().ModelT.InitFromPackedBuf(content, 0)
        notes = self._notes(model)
        tensors: dict[str, dict[str, Any]] = notes["tensors"]
        self.layouts = {name: Layout(**_tuples(fields)) for name, fields in tensors.items()}
        self._formulas: dict[str, str] = notes["quantize"]
        self.sites = tuple(sites)
        if self.sites:
            content = self._exposing(model)
        self.interpreter = self._open(content, threads or os.cpu_count() or 1)
        signature = self.interpreter._get_full_signature_list()[SIGNATURE]
        names = {index: name for name, index in signature["inputs"].items()}
        # The signature sorts its names; the order of the file is that of the program.
        order = [int(detail["index"]) for detail in self.interpreter.get_input_details()]
        self._inputs = {names[index]: index for index in order}
        self._outputs: dict[str, int] = signature["outputs"]
        self._details = {
            int(detail["index"]): detail for detail in self.interpreter.get_tensor_details()
        }
        self._index = {detail["name"]: index for index, detail in self._details.items()}

    def run(self, inputs: Sequence[Values]) -> Mapping[str, Values]:
        """Outputs and asked-for sites by name, for inputs in the order of the file.

        Everything goes in and comes out as the program has it: the order of axes is put right
        here, real values of files that take codes are quantized, codes of outputs dequantized.

        Raises:
            ExportError: inputs that the file does not take.
        """
        samples = [self._run_sample(inputs, sample) for sample in range(len(inputs[0]))]
        return {name: self._joined(name, [s[name] for s in samples]) for name in samples[0]}

    def constants(self) -> dict[str, Values]:
        """Nothing: the file holds numbers in another layout."""
        return {}

    def integer_kernel_of(self, sites: Collection[str]) -> dict[str, bool]:
        """For each site, whether integers went into and came out of the kernel that made it.

        A kernel of this runtime is chosen by the types of its tensors, which are read from the
        open interpreter; moves of codes behind it are looked through.
        """
        makers = self._makers()
        return {site: self._is_integer(makers, self._index.get(site, -1)) for site in sites}

    def delegated(self) -> frozenset[str]:
        """The names of the tensors that cross the border of a delegate."""
        details = self.interpreter._get_ops_details()
        crossing = [
            int(index)
            for detail in details
            if detail["op_name"] == _DELEGATE
            for index in (*detail["inputs"], *detail["outputs"])
        ]
        return frozenset(self._details[index]["name"] for index in crossing if index >= 0)

    # Opening -------------------------------------------------------------------------------------

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ExportError(f"{self.path}: it cannot be read ({error.strerror})") from error

    def _check(self, content: bytes) -> None:
        """Let the runtime verify the file: reading a damaged one in Python may not end."""
        if not content:
            raise ExportError(f"{self.path}: not a complete .tflite file (it is empty)")
        self._open(content, 1)

    def _open(self, content: bytes, threads: int) -> Any:
        interpreters = _interpreters()
        resolver = getattr(interpreters.OpResolverType, self.resolver)
        try:
            opened = interpreters.Interpreter(
                model_content=content,
                experimental_op_resolver_type=resolver,
                num_threads=threads,
            )
            opened.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{self.path}: LiteRT refuses it: {error}") from error
        return opened

    def _notes(self, model: Any) -> dict[str, Any]:
        for entry in model.metadata or ():
            if _text(entry.name) == LAYOUT:
                data = bytes(bytearray(model.buffers[entry.buffer].data))
                found: dict[str, Any] = json.loads(data)
                return found
        raise ExportError(
            f"{self.path}: it has no metadata {LAYOUT!r}, which says how its axes are permuted; "
            "was it written by Halfstep?"
        )

    def _exposing(self, model: Any) -> bytes:
        """The file with every site as an output."""
        (graph,) = model.subgraphs
        index = {_text(tensor.name): position for position, tensor in enumerate(graph.tensors)}
        missing = [site for site in self.sites if site not in index and site not in _outputs(model)]
        if missing:
            raise ExportError(
                f"{self.path}: it has no tensor {missing[0]}; was it made from this program?"
            )
        known = {*map(int, graph.outputs), *map(int, graph.inputs)}
        wanted = [index[site] for site in self.sites if site in index]
        graph.outputs = [*map(int, graph.outputs), *(i for i in wanted if i not in known)]
        return packed(model)

    # Running -------------------------------------------------------------------------------------

    def _run_sample(self, inputs: Sequence[Values], sample: int) -> dict[str, Values]:
        try:
            for (name, index), values in zip(self._inputs.items(), inputs, strict=True):
                self.interpreter.set_tensor(index, self._prepared(name, index, values, sample))
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{self.path}: LiteRT refuses the inputs: {error}") from error
        found = {site: self._found(self._index[site]) for site in self.sites if site in self._index}
        for name, index in self._outputs.items():
            found[name] = self._real(index, self._found(index))
        return found

    def _prepared(self, name: str, index: int, values: Values, sample: int) -> Values:
        """One sample as the file takes it."""
        detail = self._details[index]
        layout = self.layouts[detail["name"]]
        if layout.batch is not None:
            values = values.take([sample], axis=layout.batch)
        formula = self._formulas.get(name)
        if formula is not None:
            scale, zero = detail["quantization"]
            codes = QUANTIZE[formula](values, np.float32(scale), zero)
            values = np.clip(codes, -128, 127).astype(np.int8)
        return np.ascontiguousarray(layout.to_file(values))

    def _found(self, index: int) -> Values:
        layout = self.layouts[self._details[index]["name"]]
        return layout.to_program(self.interpreter.get_tensor(index))

    def _real(self, index: int, values: Values) -> Values:
        if values.dtype != np.int8:
            return values
        scale, zero = self._details[index]["quantization"]
        steps = values.astype(np.int32) - int(zero)
        return np.asarray(np.float32(scale) * steps.astype(np.float32))

    def _joined(self, name: str, parts: list[Values]) -> Values:
        index = self._outputs.get(name, self._index.get(name, -1))
        return self.layouts[self._details[index]["name"]].joined(parts)

    # Kernels -------------------------------------------------------------------------------------

    def _makers(self) -> dict[int, Any]:
        return {
            int(detail["outputs"][0]): detail
            for detail in self.interpreter._get_ops_details()
            if detail["op_name"] != _DELEGATE
        }

    def _is_integer(self, makers: Mapping[int, Any], index: int) -> bool:
        while index in makers and makers[index]["op_name"] not in _COMPUTING:
            index = int(makers[index]["inputs"][0])
        if index not in makers:
            return False
        types = (*makers[index]["operand_types"], *makers[index]["result_types"])
        return all(kind in _INTEGERS for kind in types)


class ReferenceKernels(LiteRTModel):
    """Opened with the reference kernels."""

    resolver = "BUILTIN_REF"


class DefaultKernels(LiteRTModel):
    """Opened as users open it: with XNNPACK, and optimized kernels for what that does not take."""

    resolver = "AUTO"


def _interpreters() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise RuntimeUnavailableError(
            "running a .tflite file needs ai-edge-litert: pip install 'halfstep[litert]'"
        ) from error
    return interpreter


def _outputs(model: Any) -> set[str]:
    return {_text(entry.name) for sign in model.signatureDefs or () for entry in sign.outputs}


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
