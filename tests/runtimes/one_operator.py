"""Files of one LiteRT operator, run by either set of kernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, INT8_NARROW, INT32, QType
from halfstep.formats.tflite import LiteRTFile

Array = NDArray[Any]
F = np.float32
KERNELS = {"litert_ref": "BUILTIN_REF", "litert_xnnpack": "AUTO"}
# Every pair of codes, as an image.
A, B = (
    part.reshape(1, 256, 256, 1).astype(np.int8)
    for part in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
)
EVERY_CODE = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)


def grid(scale: Any, zero_point: int = 0, qtype: QType = INT8, axis: int | None = None) -> Affine:
    return Affine(qtype, F(scale), np.int32(zero_point), axis)


def per_channel(scales: Array, qtype: QType = INT8_NARROW, axis: int = 0) -> Affine:
    return Affine(qtype, scales, np.zeros(scales.shape, np.int32), axis)


@dataclass(frozen=True, eq=False)
class Value:
    """An input: its values, its grid, and whether the file holds them."""

    values: Array
    on: Affine | None = None
    constant: bool = False


def bias(values: Array, scales: Array) -> Value:
    return Value(values.astype(np.int32), per_channel(scales, INT32), constant=True)


def numbers(*values: Any) -> Value:
    return Value(np.asarray(values, np.int32), constant=True)


def run_operator(
    target: str,
    kind: str,
    inputs: list[Value],
    out: tuple[tuple[int, ...], str, Affine | None],
    options: str = "",
    **attrs: Any,
) -> Array:
    """What one operator makes of its inputs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    file = LiteRTFile()
    index = [
        file.tensor(f"x{i}", v.values.shape, v.values.dtype.name, v.on,
                    v.values if v.constant else None)
        for i, v in enumerate(inputs)
    ]  # fmt: skip
    made = file.tensor("y", *out)
    file.operator(kind, index, made, options, **attrs)
    given = {f"x{i}": index[i] for i, v in enumerate(inputs) if not v.constant}
    file.sign(given, {"y": made})
    resolver = getattr(OpResolverType, KERNELS[target])
    interpreter = Interpreter(
        model_content=file.to_bytes(), experimental_op_resolver_type=resolver, num_threads=1
    )
    interpreter.allocate_tensors()
    for name, position in given.items():
        interpreter.set_tensor(position, inputs[int(name[1:])].values)
    interpreter.invoke()
    found: Array = interpreter.get_tensor(made)
    return found


class Tally:
    """Formulas that are nearly right, and on how many codes each was found wrong."""

    def __init__(self) -> None:
        self.wrong: dict[str, int] = {}

    def compare(self, found: Array, right: Array, others: dict[str, Array], where: str) -> None:
        """Assert the right codes, and count those of the others that are not."""
        np.testing.assert_array_equal(found, np.clip(right, -128, 127), where)
        for name, codes in others.items():
            n_wrong = int(np.count_nonzero(np.clip(codes, -128, 127) != found))
            self.wrong[name] = self.wrong.get(name, 0) + n_wrong

    def assert_each_is_wrong(self) -> None:
        passed = [name for name, n in self.wrong.items() if not n]
        assert self.wrong
        assert not passed, f"the data cannot tell these from the right formula: {passed}"
