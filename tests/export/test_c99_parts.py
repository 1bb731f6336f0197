"""The parts of a model in C: walks, packed weights, names."""

import doctest

import numpy as np
import pytest

from halfstep.core.qtype import QType
from halfstep.errors import ExportError
from halfstep.export.c99 import names, numbers
from halfstep.export.c99.names import Names, model_name
from halfstep.export.c99.numbers import packed, packed_bits
from halfstep.export.c99.walks import Walk, order_of, steps_of


def test_steps_are_those_of_numpy() -> None:
    for shape in ((2, 3, 4, 5), (1, 7, 2), (6,), ()):
        values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        assert steps_of(shape, False) == tuple(s // values.itemsize for s in values.strides)
        moved = np.ascontiguousarray(values.transpose(order_of(len(shape), True)))
        steps = steps_of(shape, True)
        for index in np.ndindex(*shape):
            at = sum(i * step for i, step in zip(index, steps, strict=True))
            assert moved.ravel()[at] == values[index]


def test_walks_merge_axes_and_drop_those_of_one() -> None:
    rows = steps_of((1, 4, 3, 5), False)
    assert Walk.over((1, 4, 3, 5), rows, rows, rows).axes == ((60, 1, 1, 1),)
    pixels = steps_of((1, 4, 3, 5), True)
    walk = Walk.over((1, 4, 3, 5), rows, rows, pixels)
    assert walk.axes == ((15, 1, 1, 4), (4, 15, 15, 1))
    assert (walk.size, walk.is_contiguous) == (60, False)
    assert Walk.over((1, 1), (1, 1), (1, 1), (1, 1)).axes == ((1, 0, 0, 0),)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_weights_are_read_back(bits: int) -> None:
    qtype = QType(bits)
    rows = np.random.default_rng(bits).integers(qtype.qmin, qtype.qmax + 1, (5, 13))
    width = packed_bits(qtype)
    assert width == {1: 1, 2: 2, 3: 4, 4: 4}.get(bits, 8)
    data = packed(rows, width)
    assert data.shape == (5, -(-13 * width // 8))
    fields = np.unpackbits(data.view(np.uint8), axis=1, bitorder="little")[:, : 13 * width]
    places = 2 ** np.arange(width)
    places[-1] *= -1
    np.testing.assert_array_equal(fields.reshape(5, 13, width) @ places, rows)


def test_names_are_identifiers_and_differ() -> None:
    made = Names()
    found = [made[name] for name in ("a.b", "a:b", "a_b", "for", "1x1", "a.b")]
    assert found == ["a_b", "a_b_2", "a_b_3", "for_", "n1x1", "a_b"]
    assert all(name.isidentifier() for name in found)


def test_model_names() -> None:
    assert [model_name(n) for n in ("Model", "3 nets", "ünder")] == ["model", "n3_nets", "n_nder"]
    with pytest.raises(ExportError, match="asked for a name with a letter or a digit in it"):
        model_name("")


@pytest.mark.parametrize("module", [names, numbers], ids=["names", "numbers"])
def test_worked_examples(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted
    assert result.failed == 0
