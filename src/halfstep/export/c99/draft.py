"""A model in C while it grows: constants, layers, and the calls that read and write buffers."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ExportError
from halfstep.export.c99.arena import Use
from halfstep.export.c99.layout import Shape, channels_last, shapes_of_one_sample
from halfstep.export.c99.names import Names
from halfstep.export.c99.numbers import stored_offset, stored_zero
from halfstep.export.c99.walks import MAX_AXES, Walk, steps_of
from halfstep.program.batch import outer_sizes
from halfstep.program.ir import IntProgram, Op, Tensor

_C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "uint32": "uint32_t"}


@dataclass(frozen=True, eq=False)
class Step:
    """One call, or several that make one buffer.

    Attributes:
        calls: statements in C.
        use: of the arena.
        scratch: for each scratch array, how many values the call needs.
        kernel: what is counted, for the report of costs.
        work: how often the inner loop of that kernel runs.
        site: the operation's output; empty for a change of layout.
    """

    calls: tuple[str, ...]
    use: Use
    scratch: Mapping[str, int]
    kernel: str
    work: int
    site: str


@dataclass(frozen=True, eq=False)
class Constant:
    """An array that is part of the program's read-only data."""

    name: str
    values: NDArray[Any]
    what: str

    @property
    def declaration(self) -> str:
        """Without ``extern`` and initializer."""
        return f"const {_C_TYPES[self.values.dtype.name]} {self.name}[{self.values.size}]"


@dataclass(eq=False)
class Draft:
    """What has been written of a model so far.

    Attributes:
        program: what is written.
        prefix: of every name that other files see.
        steps: the calls, in order of execution.
        constants: by name in C.
        layers: declarations of what the calls describe.
        made: for each site, the step behind which its codes are ready; -1 before the first.
    """

    program: IntProgram
    prefix: str
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names()
        self.outer = outer_sizes(self.program)
        self.shapes = shapes_of_one_sample(self.program)
        self.last = channels_last(self.program, self.shapes)
        self._buffers: dict[tuple[str, bool], str] = {}

    # Values ------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """A tensor of the program."""
        return self.program.tensor(name)

    def shape(self, name: str) -> Shape:
        """For one sample."""
        return self.shapes[name]

    def steps_of(self, name: str) -> tuple[int, ...]:
        """How far apart neighbours of a value lie along each axis."""
        return steps_of(self.shapes[name], name in self.last)

    def zero(self, name: str) -> int:
        """The stored code of real zero."""
        return stored_zero(self.program.grid(name))

    def size(self, name: str) -> int:
        """How many codes one sample has."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    def name_buffer(self, name: str, variable: str) -> None:
        """Say where a value lies, in its own layout."""
        self._buffers[name, name in self.last] = variable

    def read(self, name: str, channels_last: bool | None = None) -> str:
        """The variable of a value, rearranged if it is wanted in another layout than its own."""
        own = name in self.last
        wanted = own if channels_last is None else channels_last
        shape = self.shapes[name]
        if len(shape) < 3:
            wanted = own = False
        if (name, wanted) not in self._buffers:
            if (name, own) not in self._buffers:
                self._buffers[name, own] = self._constant_codes(name)
            if wanted != own:
                self._rearrange(name, wanted)
        return self._buffers[name, wanted]

    def _rearrange(self, name: str, wanted: bool) -> None:
        shape = self.shapes[name]
        own_steps, wanted_steps = steps_of(shape, not wanted), steps_of(shape, wanted)
        walk = Walk.over(shape, own_steps, own_steps, wanted_steps)
        source = self._buffers[name, not wanted]
        if walk.is_contiguous:
            self._buffers[name, wanted] = source
            return
        variable = self.names[f"{name}/{'pixels' if wanted else 'rows'}"]
        call = f"hs_copy({self.walk(variable, walk)}, {source}, {variable});"
        use = Use((source,), variable, walk.size)
        self.steps.append(Step((call,), use, {}, "copy", walk.size, ""))
        self._buffers[name, wanted] = variable

    def _constant_codes(self, name: str) -> str:
        tensor = self.tensor(name)
        if tensor.data is None:
            raise ExportError(f"{name}: it is read before it is made; the program is damaged")
        if tensor.grid is None:
            return self.constant(name, np.asarray(tensor.data, np.int32), "indices")
        codes = tensor.data.astype(np.int64) - stored_offset(tensor.grid.qtype)
        return self.constant(name, codes.astype(np.int8), "codes")

    # Declarations ------------------------------------------------------------------------------

    def constant(self, name: str, values: NDArray[Any], what: str) -> str:
        """The variable of a read-only array, made once for each name."""
        variable = f"{self.prefix}_{self.names[name]}"
        if variable not in self.constants:
            self.constants[variable] = Constant(variable, values.reshape(-1), what)
        return variable

    def layer(self, kind: str, name: str, fields: Mapping[str, Any]) -> str:
        """Declare a structure; return the expression that points to it."""
        return self._structure(kind, f"{name}/layer", fields)

    def walk(self, name: str, walk: Walk) -> str:
        """Declare a walk; return the expression that points to it.

        Raises:
            ExportError: it has more axes than the runtime takes.
        """
        if len(walk.axes) > MAX_AXES:
            raise ExportError(
                f"{name}: it moves codes along {len(walk.axes)} axes of different steps, and the "
                f"runtime in C has {MAX_AXES}; split the operation in two"
            )
        columns = [braces(column) for column in zip(*walk.axes, strict=True)]
        fields = dict(zip(("size", "a", "b", "out"), columns, strict=True))
        return self._structure("hs_walk", f"{name}/walk", {"axes": len(walk.axes), **fields})

    def _structure(self, kind: str, name: str, fields: Mapping[str, Any]) -> str:
        variable = self.names[name]
        # Lines break between fields, not within one.
        parts = [f".{key} = {value},".replace(" ", "~") for key, value in fields.items()]
        body = textwrap.fill(
            " ".join(parts),
            96,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("~", " ")
        self.layers.append(f"static const {kind} {variable} = {{\n{body}\n}};")
        return f"&{variable}"

    def codes(self, op: Op) -> str:
        """What makes codes of steps: zero point and bounds, as an initializer in C."""
        grid = self.program.grid(op.output)
        low, high = op.clamp or (grid.qtype.qmin, grid.qtype.qmax)
        offset = stored_offset(grid.qtype)
        return f"{{{stored_zero(grid)}, {low - offset}, {high - offset}}}"

    # Steps -------------------------------------------------------------------------------------

    def add(
        self,
        op: Op,
        calls: Sequence[str],
        reads: Iterable[str],
        kernel: str,
        work: int,
        over: Sequence[str] = (),
        **scratch: int,
    ) -> None:
        """Append the calls that make the output of ``op`` in the buffer of its own name.

        Args:
            op: the operation.
            calls: in C.
            reads: variables that they read.
            kernel: for the report of costs.
            work: how often its inner loop runs.
            over: variables that the output may lie over.
            **scratch: values needed in each scratch array.
        """
        variable = self.names[op.output]
        use = Use(tuple(reads), variable, self.size(op.output), tuple(over))
        self.steps.append(Step(tuple(calls), use, scratch, kernel, work, op.output))
        self.name_buffer(op.output, variable)
        self.made[op.output] = len(self.steps) - 1

    def alias(self, op: Op, variable: str) -> None:
        """The output of ``op`` is what lies in ``variable``: nothing is to be done."""
        self.name_buffer(op.output, variable)
        self.made[op.output] = len(self.steps) - 1


def braces(values: Iterable[Any]) -> str:
    """An initializer in C of plain values."""
    return "{" + ", ".join(str(int(value)) for value in values) + "}"
