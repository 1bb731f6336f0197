"""The integer program: frozen, printable, numpy data only.

A program is a list of operations over named tensors, in order of execution. A tensor with a grid
holds codes; one without holds float32 (or int64, bool) values. Every operation says how it runs
(``Execution``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import BATCH, Execution
from halfstep.core.grid import Affine
from halfstep.errors import unknown_name


def sizes(shape: tuple[int, ...]) -> str:
    """``(BATCH, 3, 4)`` as "Nx3x4", and no sizes as "scalar"."""
    return "x".join("N" if size == BATCH else str(size) for size in shape) or "scalar"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named value.

    Attributes:
        name: unique in the program; a site's name where the tensor is a site.
        shape: sizes; ``BATCH`` where a size grows with the batch.
        grid: what codes mean; ``None`` for a tensor of real values.
        dtype: numpy name of the element type: the grid's storage type, or the float side's.
        data: the values of a constant, ``None`` for what is computed.
    """

    name: str
    shape: tuple[int, ...]
    grid: Affine | None = None
    dtype: str = "float32"
    data: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None:
            object.__setattr__(self, "dtype", self.grid.qtype.storage.name)
        if self.data is not None:
            data = np.ascontiguousarray(self.data).reshape(self.data.shape)
            data.setflags(write=False)
            object.__setattr__(self, "data", data)

    def __str__(self) -> str:
        kind = str(self.grid) if self.grid else self.dtype
        return f"%{self.name} [{sizes(self.shape)}] {kind}"


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: ``output = kind(inputs, attrs)``.

    Attributes:
        kind: a name in the op table, such as ``"conv"`` or ``"add"``.
        inputs: names of tensors; weights and biases are inputs.
        output: the name of the tensor that it makes.
        execution: how it runs.
        attrs: strides, axes, ...; plain values.
        formula: the requantization, a name in the kernel's table; ``None`` where none is needed.
        clamp: tighter bounds on the output codes than those of their type (a fused ReLU6).
        module: the module of the model that it comes from.
        macs: multiply-accumulates a sample.
        reason: why it does not run on an integer kernel; empty if it does.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    execution: Execution
    attrs: Mapping[str, Any] = field(default_factory=dict)
    formula: str | None = None
    clamp: tuple[int, int] | None = None
    module: str = ""
    macs: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __str__(self) -> str:
        how = f"{self.execution}:{self.formula}" if self.formula else str(self.execution)
        words = [f"%{self.output} = {self.kind}({', '.join(f'%{name}' for name in self.inputs)})"]
        words += [f"{key}={value}" for key, value in self.attrs.items()]
        words += [f"clamp={self.clamp}"] if self.clamp else []
        return " ".join([*words, f"[{how}]"])


@dataclass(frozen=True, eq=False, repr=False)
class IntProgram:
    """What a target will run.

    Attributes:
        target: name of the target whose formulas the operations carry.
        inputs: names of the float (or int64) tensors that come in, in order.
        outputs: names of the float tensors that go out, in order.
        tensors: every tensor by name, constants included.
        ops: in order of execution.
        accumulator_bits: bits of the sums of products, which no input may overflow.
        pair_sum_bits: bits that a kernel may keep of the sum of two neighbouring products, which no
            input may overflow either; ``None`` where products go straight to the accumulator.
    """

    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    accumulator_bits: int = 32
    pair_sum_bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def tensor(self, name: str) -> Tensor:
        """The tensor called ``name``; an unknown one is an error with suggestions."""
        if name not in self.tensors:
            raise unknown_name("tensor", name, self.tensors)
        return self.tensors[name]

    def grid(self, name: str) -> Affine:
        """The grid of a tensor of codes."""
        grid = self.tensor(name).grid
        if grid is None:
            raise TypeError(f"{name} holds real values, not codes")
        return grid

    def constant(self, name: str) -> NDArray[Any]:
        """The values of a constant."""
        data = self.tensor(name).data
        if data is None:
            raise TypeError(f"{name} is computed, not a constant")
        return data

    @property
    def sites(self) -> tuple[str, ...]:
        """Every computed tensor of codes, and every scaled sum of codes, in order of execution."""
        return tuple(
            op.output
            for op in self.ops
            if self.tensors[op.output].grid is not None or op.execution is Execution.SCALED
        )

    def integer_coverage(self) -> float | None:
        """The share, 0 to 1, of multiply-accumulates on integer kernels; ``None`` without any."""
        total = sum(op.macs for op in self.ops)
        kernels = (Execution.INTEGER, Execution.SCALED)
        integer = sum(op.macs for op in self.ops if op.execution in kernels)
        return integer / total if total else None

    def __repr__(self) -> str:
        return f"IntProgram({self.target}: {len(self.ops)} operations, {len(self.sites)} sites)"

    def __str__(self) -> str:
        constants = [str(t) for t in self.tensors.values() if t.data is not None]
        head = f"program for {self.target}({', '.join(self.inputs)})"
        sums = f"{self.accumulator_bits}-bit accumulators"
        if self.pair_sum_bits is not None:
            sums += f", {self.pair_sum_bits}-bit sums of two products"
        lines = [f"{head} with {sums}", *constants]
        for op in self.ops:
            lines += [str(op), f"    : {self.tensors[op.output]}"]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])
