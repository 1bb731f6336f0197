"""Functions of real values that LiteRT has no operator for, or only a special case of.

Codes are looked up in a table instead, whatever the function.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from halfstep.program.ir import Op

if TYPE_CHECKING:
    from halfstep.export.litert import Writer


class _Steps:
    """Operators on values of one shape, one after the other; the last one makes the output."""

    def __init__(self, writer: "Writer", op: Op) -> None:
        self.writer, self.op = writer, op
        self.source = writer.aligned(op.inputs[0], op.output)
        self.count = 0

    def made(self) -> int:
        self.count += 1
        shape = self.writer.layouts[self.op.output].file_shape
        return self.writer.temporary(f"{self.op.output}/step_{self.count}", shape, self.op.output)

    def unary(self, kind: str, x: int, options: str = "") -> int:
        out = self.made()
        self.writer.file.operator(kind, [x], out, options)
        return out

    def binary(self, kind: str, x: int, y: int | float, last: bool = False) -> int:
        """Of two values, or a value and a number."""
        other = y if isinstance(y, int) else self.writer.constant(np.asarray([y], np.float32))
        out = self.writer.begin(self.op) if last else self.made()
        options = {"MINIMUM": "MaximumMinimumOptions"}.get(kind, f"{kind.title()}Options")
        self.writer.file.operator(kind, [x, other], out, options)
        return out

    def softplus(self, x: int) -> int:
        """``max(x, 0) + log(1 + exp(-|x|))``, which never overflows."""
        size = self.unary("NEG", self.unary("ABS", x, "AbsOptions"), "NegOptions")
        grown = self.binary("ADD", self.unary("EXP", size, "ExpOptions"), 1.0)
        return self.binary("ADD", self.unary("RELU", x), self.unary("LOG", grown))


def _absolute(writer: "Writer", op: Op) -> None:
    source = writer.aligned(op.inputs[0], op.output)
    writer.file.operator("ABS", [source], writer.begin(op), "AbsOptions")


def _elu(writer: "Writer", op: Op) -> None:
    steps = _Steps(writer, op)
    alpha, scale, input_scale = (op.attrs[name] for name in ("alpha", "scale", "input_scale"))
    below = steps.binary("MINIMUM", steps.source, 0.0)
    below = steps.unary("EXP", steps.binary("MUL", below, float(input_scale)), "ExpOptions")
    below = steps.binary("MUL", steps.binary("ADD", below, -1.0), float(alpha * scale))
    above = steps.binary("MUL", steps.unary("RELU", steps.source), float(scale))
    steps.binary("ADD", above, below, last=True)


def _softplus(writer: "Writer", op: Op) -> None:
    steps, beta = _Steps(writer, op), float(op.attrs["beta"])
    plus = steps.softplus(steps.binary("MUL", steps.source, beta))
    steps.binary("MUL", plus, 1 / beta, last=True)


def _mish(writer: "Writer", op: Op) -> None:
    steps = _Steps(writer, op)
    gate = steps.unary("TANH", steps.softplus(steps.source))
    steps.binary("MUL", steps.source, gate, last=True)


def _log_sigmoid(writer: "Writer", op: Op) -> None:
    steps = _Steps(writer, op)
    plus = steps.softplus(steps.unary("NEG", steps.source, "NegOptions"))
    steps.binary("MUL", plus, -1.0, last=True)


FLOAT_FUNCTIONS: dict[str, Callable[["Writer", Op], None]] = {
    "abs": _absolute,
    "elu": _elu,
    "softplus": _softplus,
    "mish": _mish,
    "log_sigmoid": _log_sigmoid,
}
