"""What is wanted of a site: a value that survives every way of being written down."""

import copy
import json
import pickle
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.core.spec import QuantSpec
from halfstep.errors import PlanError
from tests.broken import core as broken

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


@st.composite
def specs(draw: st.DrawFn, make: type[QuantSpec] = QuantSpec) -> QuantSpec:
    bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    axis = draw(st.none() | st.integers(-4, 4))
    return make(
        QType(bits, signed, signed and draw(st.booleans())),
        axis=axis,
        group_size=None if axis is None else draw(st.none() | st.integers(1, 2**40)),
        symmetric=signed and draw(st.booleans()),
        pow2=draw(st.booleans()),
        calibrator=draw(st.sampled_from(["minmax", "mse"]) | names),
        quantizer=draw(st.sampled_from(["ste", "lsq"]) | names),
        options=draw(st.dictionaries(names, numbers, max_size=3)),
    )


def through_yaml(data: Any) -> Any:
    return yaml.safe_load(yaml.safe_dump(data))


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


def assert_round_trips(spec: QuantSpec) -> None:
    """Law: as a dict, as YAML and as JSON, a spec reads back equal."""
    for written in (dict, through_yaml, through_json):
        found = type(spec).from_dict(written(spec.to_dict()))
        assert found == spec, f"{written.__name__}: {found!r} is not {spec!r}"


@given(specs())
def test_round_trips(spec: QuantSpec) -> None:
    assert_round_trips(spec)


@pytest.mark.parametrize("specimen", [broken.ForgetsPow2, broken.ForgetsOptions])
def test_broken_spec_is_rejected(specimen: type[QuantSpec]) -> None:
    with pytest.raises(AssertionError, match="dict: "):
        assert_round_trips(specimen(INT8, pow2=True, options={"percentile": 99.9}))


@given(specs())
def test_copies_are_equal(spec: QuantSpec) -> None:
    for copied in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert copied == spec
        assert repr(copied) == repr(spec)


def test_defaults_are_left_out() -> None:
    assert QuantSpec(INT8).to_dict() == {"qtype": "int8", "calibrator": "minmax"}


def test_everything_else_is_written() -> None:
    spec = QuantSpec(INT8, 0, True, True, "percentile", "lsq", {"percentile": 99.9}, 32)
    assert spec.to_dict() == {
        "qtype": "int8",
        "calibrator": "percentile",
        "axis": 0,
        "group_size": 32,
        "symmetric": True,
        "pow2": True,
        "quantizer": "lsq",
        "options": {"percentile": 99.9},
    }


def test_with_changes_a_copy() -> None:
    spec = QuantSpec(INT8, axis=0)
    assert spec.with_(qtype="uint8", pow2=True) == QuantSpec(UINT8, axis=0, pow2=True)
    assert spec.with_(qtype=UINT8).axis == 0
    assert spec == QuantSpec(INT8, axis=0)


def test_a_spec_is_frozen_and_keeps_its_own_options() -> None:
    options = {"percentile": 99.0}
    spec = QuantSpec(INT8, options=options)
    options["percentile"] = 50.0
    assert spec.options == {"percentile": 99.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        spec.options["percentile"] = 1.0  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot assign"):
        spec.axis = 1  # type: ignore[misc]


@pytest.mark.parametrize("make", [QuantSpec, QuantSpec(INT8).with_])
def test_a_symmetric_unsigned_spec_is_refused(make: Any) -> None:
    message = "^a symmetric spec needs a signed type, found uint4$"
    with pytest.raises(PlanError, match=message):
        make(qtype=QType(4, signed=False), symmetric=True)


@pytest.mark.parametrize(("axis", "size"), [(None, 32), (0, 0), (0, -1)])
def test_groups_are_parts_of_a_channel(axis: int | None, size: int) -> None:
    message = rf"^group_size={size} with axis={axis}: a group is one or more of the values that"
    with pytest.raises(PlanError, match=message):
        QuantSpec(INT8, axis=axis, group_size=size)


def test_an_unknown_field_is_refused() -> None:
    message = (
        "^a spec has no field bits, scale; it has qtype, axis, symmetric, pow2, calibrator, "
        "quantizer, options, group_size$"
    )
    with pytest.raises(PlanError, match=message):
        QuantSpec(INT8).with_(scale=1, bits=4)
    with pytest.raises(PlanError, match=message):
        QuantSpec.from_dict({"qtype": "int8", "scale": 1, "bits": 4})


def test_a_wrong_type_name_is_refused() -> None:
    with pytest.raises(PlanError, match="'int' is no type"):
        QuantSpec.from_dict({"qtype": "int"})


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantSpec(UINT8), "uint8 per-tensor minmax"),
        (QuantSpec(INT8, axis=1, symmetric=True), "int8 per-channel (axis 1) minmax symmetric"),
        (QuantSpec(INT8, pow2=True, calibrator="mse"), "int8 per-tensor mse pow2"),
        (QuantSpec(INT8, axis=0, group_size=32), "int8 in groups of 32 (axis 0) minmax"),
    ],
)
def test_text(spec: QuantSpec, text: str) -> None:
    assert str(spec) == text
