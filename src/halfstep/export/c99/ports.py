"""What goes into a model and what comes out: codes, in arrays of the caller."""

from dataclasses import dataclass
from typing import Any

from halfstep.core.grid import Affine
from halfstep.errors import ExportError
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.layout import Shape
from halfstep.export.c99.numbers import stored_offset, stored_zero
from halfstep.export.c99.walks import order_of
from halfstep.program.ir import Op


@dataclass(frozen=True, eq=False)
class Port:
    """One input or output.

    Attributes:
        name: of the program's input or output.
        variable: the parameter in C.
        source: the tensor of codes, or of indices.
        shape: of one sample.
        order: the axes of ``shape`` in the order of memory.
        grid: what codes mean; ``None`` for indices.
        place: among the inputs of the model, whose unread ones have no parameter, or the outputs.
    """

    name: str
    variable: str
    source: str
    shape: Shape
    order: tuple[int, ...]
    grid: Affine | None
    place: int

    @property
    def c_type(self) -> str:
        """Of its elements."""
        return "int32_t" if self.grid is None else "int8_t"

    @property
    def macro(self) -> str:
        """The part of macro names that stands for it."""
        return self.variable.upper()

    @property
    def size(self) -> int:
        """How many elements it has."""
        size = 1
        for axis in self.shape:
            size *= axis
        return size

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        kind = {} if self.grid is None else {"offset": stored_offset(self.grid.qtype)}
        return {
            "name": self.name,
            "variable": self.variable,
            "type": self.c_type,
            "shape": list(self.shape),
            "order": list(self.order),
            "place": self.place,
            **kind,
        }

    def constants(self, prefix: str) -> list[str]:
        """What its codes mean, as macros in C."""
        lines = [f"#define {prefix}_{self.macro}_SIZE {self.size}"]
        if self.grid is not None:
            scale = float(self.grid.scale)
            lines += [
                f"#define {prefix}_{self.macro}_SCALE {scale.hex()}f /* {scale:.9g} */",
                f"#define {prefix}_{self.macro}_ZERO_POINT ({stored_zero(self.grid)})",
            ]
        return lines

    def described(self) -> str:
        """Its axes in the order of memory, for people."""
        names = {3: ("channels", "length"), 4: ("channels", "height", "width")}
        if self.order == tuple(range(len(self.order))):
            return " x ".join(str(size) for size in self.shape[1:]) or "1"
        axes = ("sample", *names.get(len(self.shape), ("channels",)))
        axes += tuple(f"axis {i}" for i in range(len(axes), len(self.shape)))
        return " x ".join(f"{self.shape[i]} ({axes[i]})" for i in self.order[1:])


def input_ports(draft: Draft) -> list[Port]:
    """The inputs that are read, each the codes of one quantize, or indices.

    Raises:
        ExportError: an input that an integer program cannot read, or none is read.
    """
    ports = []
    for place, name in enumerate(draft.program.inputs):
        readers = [op for op in draft.program.ops if name in op.inputs]
        if not readers:
            continue
        source = name
        if draft.tensor(name).dtype == "float32":
            if [op.kind for op in readers] != ["quantize"]:
                raise ExportError(
                    f"{name}:in: real values that {_kinds(readers)} read; a model in C takes "
                    "codes. Plan for a target that runs integers only, such as 'c99'"
                )
            source = readers[0].output
        elif draft.tensor(name).dtype != "int64" or {op.kind for op in readers} - {"embedding"}:
            raise ExportError(
                f"{name}: {draft.tensor(name).dtype} values that {_kinds(readers)} read; a model "
                "in C takes codes, or indices of an embedding"
            )
        ports.append(_port(draft, name, source, place))
        draft.name_buffer(source, ports[-1].variable)
        if source != name:
            draft.made[source] = -1
    if not ports:
        raise ExportError(
            f"{', '.join(draft.program.inputs)}: nothing reads them, so that the outputs are "
            "constants: there is no model to write"
        )
    return ports


def output_ports(draft: Draft) -> list[Port]:
    """The outputs, each the codes that one dequantize reads."""
    makers = {op.output: op for op in draft.program.ops}
    sources = [(name, makers[name].inputs[0]) for name in draft.program.outputs]
    return [_port(draft, name, source, place) for place, (name, source) in enumerate(sources)]


def _kinds(readers: list[Op]) -> str:
    return ", ".join(sorted({op.kind for op in readers}))


def _port(draft: Draft, name: str, source: str, place: int) -> Port:
    shape = draft.shape(source)
    order = order_of(len(shape), source in draft.last)
    grid = draft.tensor(source).grid
    return Port(name, draft.names[name], source, shape, order, grid, place)
