"""Run an integer program, on numpy or torch, and look at every code inside.

The numpy engine is the reference: what it computes is what the program means. The torch engine
runs the same kernels on tensors, on the CPU or a GPU, and is tested to give the same codes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from halfstep.core.execution import BATCH
from halfstep.errors import DataError, ProgramError, RuntimeUnavailableError, unknown_name
from halfstep.program.backends.base import Backend
from halfstep.program.backends.numpy import NumpyBackend
from halfstep.program.ir import IntProgram, Op, Tensor, sizes
from halfstep.program.kernels import KERNELS, NEED_BATCH
from halfstep.program.kernels.setup import Setup, Step

Array = Any
Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave: float outputs by position, kept tensors by name."""

    outputs: tuple[Values, ...]
    kept: Mapping[str, Values]


class Engine:
    """Runs ``program``; constants are moved to the backend, and kernels prepared, once.

    Args:
        program: one that ``check`` accepts.
        backend: ``"numpy"``, ``"torch"`` or ``"torch:DEVICE"``.

    Raises:
        ProgramError: an operation that the engine has no kernel for.
    """

    def __init__(self, program: IntProgram, backend: str = "numpy") -> None:
        self.program = program
        self.backend = make_backend(backend)
        self._constants = {
            name: self.backend.asarray(tensor.data)
            for name, tensor in program.tensors.items()
            if tensor.data is not None
        }
        self._steps = [_step(program, op, self.backend) for op in program.ops]
        self._last_use = _last_uses(program)

    def run(
        self,
        inputs: Sequence[Values],
        keep: Collection[str] = (),
        anchors: Mapping[str, Values] | None = None,
    ) -> Run:
        """One batch through the program.

        Args:
            inputs: arrays in the order of ``program.inputs``, of their shapes and dtypes.
            keep: names of computed tensors to return as well, as they were computed here.
            anchors: values that replace computed tensors for all that follows: the codes that a
                runtime made from a float island, so that the rest is compared on equal inputs.

        Raises:
            DataError: an input or an anchor of another shape or dtype than the program's.
            UnknownNameError: ``keep`` or ``anchors`` names what the program does not compute.
        """
        anchors = anchors or {}
        named = dict(zip(self.program.inputs, inputs, strict=False))
        batch = self._check(inputs, named, keep, anchors)
        live = dict(self._constants)
        live |= {name: self.backend.asarray(value) for name, value in named.items()}
        kept: dict[str, Values] = {}
        with self.backend.computing():
            for index, (op, step) in enumerate(zip(self.program.ops, self._steps, strict=True)):
                extra = (batch,) if op.kind in NEED_BATCH else ()
                live[op.output] = step(*(live[name] for name in op.inputs), *extra)
                if op.output in keep:
                    kept[op.output] = self._values(op.output, live)
                if op.output in anchors:
                    live[op.output] = self.backend.asarray(anchors[op.output])
                for name in self._last_use.get(index, ()):
                    del live[name]
        return Run(tuple(self._values(name, live) for name in self.program.outputs), kept)

    def check_inputs(self, inputs: Sequence[Values]) -> None:
        """Raise ``DataError`` unless ``run`` takes these inputs."""
        self._check(inputs, dict(zip(self.program.inputs, inputs, strict=False)), (), {})

    def _values(self, name: str, live: Mapping[str, Array]) -> Values:
        dtype = self.program.tensor(name).dtype
        return self.backend.to_numpy(live[name]).astype(dtype, copy=False)

    def _check(
        self,
        inputs: Sequence[Values],
        named: Mapping[str, Values],
        keep: Collection[str],
        anchors: Mapping[str, Values],
    ) -> int:
        """Refuse what does not fit the program; return the number of samples."""
        if len(inputs) != len(self.program.inputs):
            raise DataError(
                f"the program takes {len(self.program.inputs)} inputs "
                f"({', '.join(self.program.inputs)}), found {len(inputs)}"
            )
        computed = {op.output for op in self.program.ops}
        for name in (*keep, *anchors):
            if name not in computed:
                raise unknown_name("computed tensor", name, computed)
        for name, value in (*named.items(), *anchors.items()):
            _check_array(self.program.tensor(name), value)
        batches = {
            value.shape[axis]
            for name, value in named.items()
            for axis, size in enumerate(self.program.tensor(name).shape)
            if size == BATCH
        }
        if len(batches) > 1:
            raise DataError(f"the inputs hold different numbers of samples: {sorted(batches)}")
        if 0 in batches:
            raise DataError(
                f"{', '.join(named)}: asked for at least one sample, found an empty batch; leave "
                "it out"
            )
        return int(batches.pop()) if batches else 1


def _check_array(tensor: Tensor, value: Values) -> None:
    fits = len(tensor.shape) == value.ndim and all(
        wanted in (BATCH, size) for wanted, size in zip(tensor.shape, value.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{tensor.name}: asked for shape {sizes(tensor.shape)}, found {sizes(value.shape)}"
        )
    if value.dtype.name != tensor.dtype:
        raise DataError(f"{tensor.name}: asked for {tensor.dtype}, found {value.dtype.name}")


def _step(program: IntProgram, op: Op, backend: Backend) -> Step:
    kernel = KERNELS.get((op.execution, op.kind))
    if kernel is None:
        raise ProgramError(f"{op.output}: the engine has no {op.execution} kernel for {op.kind}")
    return kernel(Setup(program, op, backend))


def make_backend(name: str) -> Backend:
    """``"numpy"``, ``"torch"`` or ``"torch:DEVICE"``."""
    library, _, device = name.partition(":")
    if library == "numpy":
        return NumpyBackend()
    if library == "torch":
        try:
            from halfstep.program.backends.torch import TorchBackend
        except ImportError as error:
            message = "the torch backend needs torch: pip install torch"
            raise RuntimeUnavailableError(message) from error
        return TorchBackend(device or "cpu")
    raise unknown_name("backend", name, ["numpy", "torch", "torch:cuda"])


def _last_uses(program: IntProgram) -> dict[int, list[str]]:
    """For each position, the computed tensors that nothing needs after it."""
    last: dict[str, int] = {}
    for index, op in enumerate(program.ops):
        last[op.output] = index
        last |= {name: index for name in op.inputs if program.tensors[name].data is None}
    uses: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in program.outputs:
            uses.setdefault(index, []).append(name)
    return uses
