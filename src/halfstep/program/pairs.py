"""Pairs of products that x86 kernels of before VNNI add in int16, which saturates.

ONNX Runtime multiplies uint8 codes by int8 codes with ``pmaddubsw`` there: two neighbours along the
reduction are added in int16 before anything else. Which two was measured under an emulated Haswell
(``tests/runtimes/test_saturation.py``): the first and the second, the third and the fourth, ... in
the order in which a kernel lays the inputs out. For a convolution that is kernel position by
kernel position, and within one the channels of the group; for a matrix product it is the order of
the inputs. Kernels for depthwise convolutions, and for operands that are both signed or both
unsigned, add in int32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.program.code_ranges import Range, read_range
from halfstep.program.ir import IntProgram, Op

_KINDS = ("conv", "linear", "matmul")


def adds_pairs(program: IntProgram, op: Op) -> bool:
    """Whether a kernel may add products of ``op`` in pairs."""
    if op.kind not in _KINDS or op.execution not in (Execution.INTEGER, Execution.SCALED):
        return False
    if [program.tensor(name).dtype for name in op.inputs[:2]] != ["uint8", "int8"]:
        return False
    return not (op.kind == "conv" and _is_depthwise(program, op))


def _is_depthwise(program: IntProgram, op: Op) -> bool:
    outputs, inputs, *_ = program.tensor(op.inputs[1]).shape
    return inputs == 1 and 1 < op.attrs["groups"] == outputs


def in_pairs(weight: NDArray[Any]) -> NDArray[Any]:
    """(outputs, inputs of a group, *kernel) as (outputs, pairs, 2), filled up with a zero."""
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(weight), -1, 2)


def from_pairs(pairs: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The inverse of ``in_pairs``, for a weight of ``shape``."""
    outputs, inputs, *kernel = shape
    rows = pairs.reshape(outputs, -1)[:, : int(np.prod(shape[1:]))]
    return np.moveaxis(rows.reshape(outputs, *kernel, inputs), -1, 1)


def pair_sums(
    program: IntProgram, op: Op, ranges: Mapping[str, Range]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The smallest and the largest sum of a pair in each output channel; some input reaches them.

    For a product of two activations one sum for all channels.
    """
    codes = np.array(read_range(program, op, ranges), np.int64)
    if op.kind == "matmul":
        products = np.outer(codes, ranges[op.inputs[1]])
        terms = 1 if program.tensor(op.inputs[0]).shape[-1] == 1 else 2
        return products.min(keepdims=True)[0] * terms, products.max(keepdims=True)[0] * terms
    pairs = in_pairs(program.constant(op.inputs[1]).astype(np.int64))
    products = np.stack([pairs * code for code in codes])
    lowest, highest = products.min(axis=0).sum(axis=-1), products.max(axis=0).sum(axis=-1)
    return lowest.min(axis=1), highest.max(axis=1)
