"""The ranges of codes: every type that there is."""

import re
from typing import Any

import numpy as np
import pytest

from halfstep.core.qtype import INT8, INT8_NARROW, INT32, UINT8, QType
from halfstep.errors import PlanError
from tests.broken import core as broken

WIDE = (32, 33, 48, 53)


def every_type(make: type[QType] = QType) -> list[QType]:
    types = [make(bits, signed) for bits in (*range(1, 17), *WIDE) for signed in (True, False)]
    return types + [make(bits, True, True) for bits in (*range(2, 17), *WIDE)]


def assert_range_holds_two_to_the_bits(make: type[QType]) -> None:
    """Law: 2^bits codes, zero among them; a narrow type drops the lowest and is symmetric."""
    for qtype in every_type(make):
        n_codes = qtype.qmax - qtype.qmin + 1
        assert n_codes == 2**qtype.bits - qtype.narrow, qtype
        assert qtype.qmin <= 0 <= qtype.qmax, qtype
        if qtype.narrow:
            assert qtype.qmin == -qtype.qmax, qtype
        elif qtype.signed:
            assert qtype.qmin == -qtype.qmax - 1, qtype
        else:
            assert qtype.qmin == 0, qtype


def assert_storage_is_the_smallest_that_holds_every_code(make: type[QType]) -> None:
    """Law: both ends fit the storage, and neither fits half of its width."""
    for qtype in every_type(make):
        info = np.iinfo(qtype.storage)
        assert info.min <= qtype.qmin <= qtype.qmax <= info.max, qtype
        assert (info.min < 0) == qtype.signed, qtype
        if info.bits > 8:
            half = np.iinfo(f"{'' if qtype.signed else 'u'}int{info.bits // 2}")
            assert qtype.qmax > half.max, qtype
        saturated = (info.min, info.max) == (qtype.qmin, qtype.qmax)
        assert qtype.fills_storage == saturated, qtype


def assert_names_round_trip(make: type[QType]) -> None:
    """Law: the name reads back as the type, and is what the type prints."""
    for qtype in every_type(make):
        assert make.parse(qtype.name) == qtype, qtype
        assert str(qtype) == qtype.name


LAWS = [
    assert_range_holds_two_to_the_bits,
    assert_storage_is_the_smallest_that_holds_every_code,
    assert_names_round_trip,
]


@pytest.mark.parametrize("law", LAWS)
def test_law(law: Any) -> None:
    law(QType)


@pytest.mark.parametrize(
    ("law", "specimen"),
    [
        (LAWS[0], broken.NarrowIgnored),
        (LAWS[0], broken.OneCodeShort),
        (LAWS[1], broken.StoredTooSmall),
        (LAWS[2], broken.NameWithoutNarrow),
    ],
)
def test_broken_type_is_rejected(law: Any, specimen: type[QType]) -> None:
    with pytest.raises(AssertionError):
        law(specimen)


def test_the_table_of_the_docstring_is_true() -> None:
    rows = re.findall(r"\| ``(\w+)``\s*\| (\S+)\s*\| ([^|]+?)\s*\| (\w+)", QType.__doc__ or "")
    assert len(rows) >= 5
    for name, *ends, storage in rows:
        qtype = QType.parse(name)
        qmin, qmax = (eval(end.replace("^", "**")) for end in ends)
        assert (qtype.qmin, qtype.qmax, qtype.storage.name) == (qmin, qmax, storage)


def test_named_types() -> None:
    assert [t.name for t in (UINT8, INT8, INT8_NARROW, INT32)] == [
        "uint8",
        "int8",
        "int8_narrow",
        "int32",
    ]


def test_types_are_values() -> None:
    assert QType(8) == INT8
    assert len({QType(8), INT8, UINT8}) == 2
    with pytest.raises(AttributeError, match="cannot assign"):
        INT8.bits = 4  # type: ignore[misc]


@pytest.mark.parametrize("bits", [-1, 0, 17, 24, 31, 54, 64])
@pytest.mark.parametrize("signed", [True, False])
def test_an_impossible_width_is_refused(bits: int, signed: bool) -> None:
    message = (
        rf"^bits={bits}: a type has 1 to 16 bits, or 32 to 53 for a bias that is as wide as its "
        r"accumulator$"
    )
    with pytest.raises(PlanError, match=message):
        QType(bits, signed)


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (1, True), (1, False)])
def test_an_impossible_narrow_type_is_refused(bits: int, signed: bool) -> None:
    message = f"^{bits} bits, signed={signed}: only a signed type of 2 or more bits can be narrow$"
    with pytest.raises(PlanError, match=message):
        QType(bits, signed, narrow=True)


@pytest.mark.parametrize("name", ["", "int", "int8 ", "INT8", "float16", "int8_wide", "sint8", "8"])
def test_a_name_that_is_no_type_is_refused(name: str) -> None:
    message = rf"^'{name}' is no type: write 'int8', 'uint8', 'int4_narrow', \.\.\.$"
    with pytest.raises(PlanError, match=message):
        QType.parse(name)


@pytest.mark.parametrize(("name", "message"), [("int64", "bits=64"), ("uint8_narrow", "narrow")])
def test_a_name_of_an_impossible_type_is_refused(name: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        QType.parse(name)
