"""Run an integer program, on numpy or torch, and look at every code inside.

The numpy engine is the reference: what it computes is what the program means. The torch engine
runs the same kernels on tensors, on the CPU or a GPU, and is tested to give the same codes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import DataError, RuntimeUnavailableError, unknown_name
from halfstep.program.backends.base import Backend
from halfstep.program.backends.numpy import NumpyBackend
from halfstep.program.bounds import WEIGHTED, accumulator_bounds
from halfstep.core.execution import BATCH, Execution
from halfstep.program.ir import IntProgram, Op
from halfstep.program.kernels import KERNELS
from halfstep.program.kernels.call import Call

Array = Any
Values = NDArray[np.generic]

# Integers up to here are exact in float32, in whatever order they are added.
_FLOAT32_EXACT = 2**24


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave: float outputs by position, kept tensors by name."""

    outputs: tuple[Values, ...]
    kept: Mapping[str, Values]


class Engine:
    """Runs ``program``; constants are moved to the backend once."""

    def __init__(self, program: IntProgram, backend: str = "numpy") -> None:
        self.program = program
        self.backend = make_backend(backend)
        self._constants = {
            name: self.backend.asarray(tensor.data)
            for name, tensor in program.tensors.items()
            if tensor.data is not None
        }
        self._exact = {op.output: _float32_is_exact(program, op) for op in program.ops}
        self._last_use = _last_uses(program)

    def run(
        self,
        inputs: Sequence[Values],
        keep: Collection[str] = (),
        anchors: Mapping[str, Values] | None = None,
    ) -> Run:
        """One batch through the program.

        Args:
            inputs: float32 (or int64) arrays in the order of ``program.inputs``.
            keep: names of tensors to return as well.
            anchors: values that replace computed tensors: the codes that a runtime made from a
                float island, so that what follows is compared on equal inputs.

        Raises:
            DataError: an input of another shape than the program's.
        """
        self._check_inputs(inputs)
        batch = len(inputs[0])
        given = {name: self.backend.asarray(value) for name, value in (anchors or {}).items()}
        live = dict(self._constants)
        live |= {n: self.backend.asarray(v) for n, v in zip(self.program.inputs, inputs, strict=True)}
        kept: dict[str, Values] = {}
        for index, op in enumerate(self.program.ops):
            value = given[op.output] if op.output in given else self._run_op(op, live, batch)
            live[op.output] = value
            if op.output in keep:
                kept[op.output] = self.backend.to_numpy(value)
            for name in self._last_use.get(index, ()):
                del live[name]
        outputs = tuple(self.backend.to_numpy(live[name]) for name in self.program.outputs)
        return Run(outputs, kept)

    def _run_op(self, op: Op, live: Mapping[str, Array], batch: int) -> Array:
        call = Call(
            op=op,
            inputs=tuple(live[name] for name in op.inputs),
            grids=tuple(self.program.tensors[name].grid for name in op.inputs),
            out=self.program.tensors[op.output],
            batch=batch,
            float32_is_exact=self._exact[op.output],
            backend=self.backend,
        )
        return KERNELS[op.execution, op.kind](call)

    def _check_inputs(self, inputs: Sequence[Values]) -> None:
        if len(inputs) != len(self.program.inputs):
            raise DataError(
                f"the program takes {len(self.program.inputs)} inputs "
                f"({', '.join(self.program.inputs)}), found {len(inputs)}"
            )
        for name, value in zip(self.program.inputs, inputs, strict=True):
            wanted = self.program.tensors[name].shape
            fits = len(wanted) == value.ndim and all(
                w in (BATCH, s) for w, s in zip(wanted, value.shape, strict=True)
            )
            if not fits:
                raise DataError(f"{name}: asked for shape {wanted}, found {tuple(value.shape)}")


def make_backend(name: str) -> Backend:
    """``"numpy"``, ``"torch"`` or ``"torch:DEVICE"``."""
    library, _, device = name.partition(":")
    if library == "numpy":
        return NumpyBackend()
    if library == "torch":
        try:
            from halfstep.program.backends.torch import TorchBackend
        except ImportError as error:
            raise RuntimeUnavailableError("the torch backend needs torch: pip install torch") from error
        return TorchBackend(device or "cpu")
    raise unknown_name("backend", name, ["numpy", "torch", "torch:cuda"])


def _float32_is_exact(program: IntProgram, op: Op) -> bool:
    """Whether the sums of products of ``op``, before its bias, are exact in float32."""
    if op.execution is not Execution.INTEGER or op.kind not in (*WEIGHTED, "matmul"):
        return True
    bound = accumulator_bounds(program, op)
    if len(op.inputs) > 2:
        bias = program.tensors[op.inputs[2]].data
        assert bias is not None
        bound = bound - np.abs(bias.astype(np.int64))
    return int(bound.max()) < _FLOAT32_EXACT


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
