"""The engine: the same codes from both backends, and what it refuses."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.errors import DataError, ProgramError, RuntimeUnavailableError, UnknownNameError
from halfstep.program.check import check
from halfstep.program.engine import Engine, make_backend
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.program.kernels import KERNELS
from tests.program.build import N, codes, grid, one_op, real
from tests.program.kinds import CODES, random_codes, random_reals

Array = NDArray[Any]


# Every kernel on codes


def test_every_kernel_on_codes_has_a_case() -> None:
    covered = {(program.ops[0].execution, program.ops[0].kind) for program, _ in CODES.values()}
    wanted = {(how, kind) for how, kind in KERNELS if how is not Execution.FLOAT}
    # A dequantized operation is the integer kernel of its kind under another name.
    as_integer = {
        (Execution.INTEGER if how is Execution.DEQUANTIZED else how, kind) for how, kind in wanted
    }
    assert as_integer - covered == {(Execution.INTEGER, "max_pool")}
    for how, kind in wanted:
        if how is Execution.DEQUANTIZED:
            assert KERNELS[how, kind] is KERNELS[Execution.INTEGER, kind]


@pytest.mark.parametrize("case", CODES)
def test_numpy_and_torch_agree(case: str) -> None:
    program, inputs = CODES[case]
    check(program)
    (mine,), (other,) = (Engine(program, name).run(inputs).outputs for name in ("numpy", "torch"))
    np.testing.assert_array_equal(mine, other)
    out = program.tensor("y")
    assert mine.dtype == other.dtype == out.dtype
    assert mine.size
    assert len(np.unique(mine)) > 2, "all codes are clamped: the case shows nothing"
    if out.grid is not None:
        low, high = program.ops[0].clamp or (out.grid.qtype.qmin, out.grid.qtype.qmax)
        assert low <= mine.min() <= mine.max() <= high


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("case", CODES)
def test_a_run_changes_neither_its_inputs_nor_the_next_run(case: str, backend: str) -> None:
    program, inputs = CODES[case]
    before = [values.copy() for values in inputs]
    engine = Engine(program, backend)
    first = engine.run(inputs).outputs[0].copy()
    np.testing.assert_array_equal(engine.run(inputs).outputs[0], first)
    for values, old in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(values, old)
        old.setflags(write=False)
    np.testing.assert_array_equal(engine.run(before).outputs[0], first)


# What the kernels that move or look up codes compute


def outcome(case: str) -> tuple[Array, list[Array]]:
    program, inputs = CODES[case]
    return Engine(program).run(inputs).outputs[0], inputs


def test_moved_codes_are_those_that_numpy_moves() -> None:
    moved: dict[str, Any] = {
        "reshape": lambda x: x.reshape(2, 24, 5),
        "transpose": lambda x: x.transpose(0, 2, 3, 1),
        "slice": lambda x: x[:, :, 0:6:2],
        "pad": lambda x: np.pad(x[:, :, :-1], ((0, 0), (1, 2), (0, 0), (2, 0)), constant_values=5),
        "concat": lambda *parts: np.concatenate(parts, axis=1),
        "minimum": np.minimum,
        "upsample_nearest": lambda x: x.repeat(2, axis=2).repeat(3, axis=3),
    }
    for case, function in moved.items():
        found, inputs = outcome(case)
        np.testing.assert_array_equal(found, function(*inputs), case)
    program, (indices,) = CODES["embedding"]
    found = Engine(program).run([indices]).outputs[0]
    np.testing.assert_array_equal(found, program.constant("t")[indices])
    program, inputs = CODES["expand"]
    found = Engine(program).run(inputs).outputs[0]
    np.testing.assert_array_equal(found, np.broadcast_to(program.constant("t"), (4, 3, 5)))


def test_max_pool_takes_the_largest_code_and_never_the_padding() -> None:
    found, (x,) = outcome("max_pool")
    real_x = torch.from_numpy(x.astype(np.float32))
    padded = torch.nn.functional.pad(real_x, (0, 1, 1, 1), value=-np.inf)
    expected = torch.nn.functional.max_pool2d(padded, (3, 2), (2, 1), 0, (1, 2))
    np.testing.assert_array_equal(found, expected.numpy())


def test_a_lookup_reads_the_entry_of_its_code_and_clamps_it() -> None:
    for case in ("lookup", "lookup of signed", "lookup of 16 bits"):
        program, (x,) = CODES[case]
        entries = program.constant("t")[x.astype(int) - program.grid("x").qtype.qmin]
        found = Engine(program).run([x]).outputs[0]
        np.testing.assert_array_equal(found, np.clip(entries, -100, 90))


def test_dequantize_per_channel() -> None:
    found, (x,) = outcome("dequantize per channel")
    on = CODES["dequantize per channel"][0].grid("x")
    np.testing.assert_array_equal(found, on.dequantize(x))


def test_quantize_is_that_of_the_grid() -> None:
    found, (x,) = outcome("quantize division")
    np.testing.assert_array_equal(found, grid(0.031, 77).quantize(x))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_reals_too_large_for_float32_saturate(backend: str) -> None:
    program, _ = CODES["quantize division"]
    huge = np.full((1, 4, 6, 5), 3e38, np.float32) * np.where(np.arange(5) > 2, 1, -1).astype("f4")
    found = Engine(program, backend).run([huge]).outputs[0]
    np.testing.assert_array_equal(found, np.where(huge > 0, 255, 0))


def test_add_has_the_table_of_every_pair() -> None:
    """8 bits by table, more by formula: both are the formula's codes."""
    from halfstep.core.elementwise import ADD

    for types in ((UINT8, UINT8), (INT8, QType(4)), (QType(9), UINT8)):
        a, b = (np.arange(t.qmin, t.qmax + 1).astype(t.storage) for t in types)
        a, b = (values.ravel() for values in np.meshgrid(a, b, indexing="ij"))
        ga, gb, gy = (grid(s, 3, t) for s, t in zip((0.1, 0.3, 0.2), (*types, INT8), strict=True))
        program = one_op(
            "add",
            [codes("a", (N,), ga), codes("b", (N,), gb)],
            codes("y", (N,), gy),
            Execution.INTEGER,
            formula="fused",
        )
        expected = ADD["fused"](a.astype(int), b.astype(int), ga.scale, gb.scale, gy.scale, 3, 3, 3)
        for backend in ("numpy", "torch"):
            found = Engine(program, backend).run([a, b]).outputs[0]
            np.testing.assert_array_equal(found, np.clip(expected, -128, 127))


# Programs of several operations


def chain() -> IntProgram:
    """quantize -> relu table -> (a float island: dequantize, exp, quantize) -> add -> real."""
    a, b = grid(0.1, 128), grid(0.2, 0)
    table = np.maximum(np.arange(256), 128).astype(np.uint8)
    tensors = [
        real("x", (N, 3)),
        codes("q", (N, 3), a),
        real("t", (256,), "uint8", table),
        codes("r", (N, 3), a),
        real("r:real", (N, 3)),
        real("e", (N, 3)),
        codes("s", (N, 3), b),
        codes("sum", (N, 3), b),
        real("y", (N, 3)),
    ]
    ops = [
        Op("quantize", ("x",), "q", Execution.EDGE, formula="division"),
        Op("lookup", ("q", "t"), "r", Execution.INTEGER, macs=3),
        Op("dequantize", ("r",), "r:real", Execution.EDGE),
        Op("exp", ("r:real",), "e", Execution.FLOAT, macs=1),
        Op("quantize", ("e",), "s", Execution.EDGE, formula="division"),
        Op("add", ("r", "s"), "sum", Execution.INTEGER, formula="dequantized"),
        Op("dequantize", ("sum",), "y", Execution.EDGE),
    ]
    named = {tensor.name: tensor for tensor in tensors}
    return check(IntProgram("reference", ("x",), ("y", "sum"), named, tuple(ops)))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_outputs_come_by_position_and_kept_tensors_by_name(backend: str) -> None:
    x = np.float32([[0.4, -1, 1], [0.04, 0.16, 2]])
    run = Engine(chain(), backend).run([x], keep=["q", "s", "r:real"])
    assert set(run.kept) == {"q", "s", "r:real"}
    np.testing.assert_array_equal(run.kept["q"], [[132, 118, 138], [128, 130, 148]])
    positive = np.float32([[0.4, 0, 1], [0, 0.2, 2]])
    np.testing.assert_allclose(run.kept["r:real"], positive, rtol=1e-6)
    np.testing.assert_array_equal(run.kept["s"], np.rint(np.exp(positive) / 0.2))
    total, codes_of_total = run.outputs
    np.testing.assert_array_equal(codes_of_total, run.kept["s"] + np.rint(positive / 0.2))
    np.testing.assert_array_equal(total, codes_of_total * np.float32(0.2))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_an_anchor_stands_for_what_was_computed(backend: str) -> None:
    x = np.zeros((2, 3), np.float32)
    anchored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    run = Engine(chain(), backend).run([x], keep=["s", "sum"], anchors={"s": anchored})
    free = Engine(chain(), backend).run([x], keep=["s"])
    np.testing.assert_array_equal(run.kept["s"], free.kept["s"])
    assert not np.array_equal(run.kept["s"], anchored)
    np.testing.assert_array_equal(run.kept["sum"], anchored)
    free = Engine(chain(), backend).run([x], keep=["s", "sum"])
    np.testing.assert_array_equal(free.kept["sum"], 5)


# What does not fit


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"the program takes 1 inputs \(x\), found 0"),
        ([np.zeros((2, 3), np.float32)] * 2, r"takes 1 inputs \(x\), found 2"),
        ([np.zeros((2, 4), np.float32)], "x: asked for shape Nx3, found 2x4"),
        ([np.zeros((2, 3, 1), np.float32)], "x: asked for shape Nx3, found 2x3x1"),
        ([np.zeros((), np.float32)], "x: asked for shape Nx3, found scalar"),
        ([np.zeros((2, 3))], "x: asked for float32, found float64"),
        ([np.zeros((2, 3), np.uint8)], "x: asked for float32, found uint8"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: list[Array], message: str, backend: str
) -> None:
    with pytest.raises(DataError, match=message):
        Engine(chain(), backend).run(inputs)


def test_batches_of_different_sizes_are_refused() -> None:
    program, (a, b) = CODES["sub dequantized"]
    with pytest.raises(DataError, match=r"different numbers of samples: \[1, 2\]"):
        Engine(program).run([a, b[:1]])


def test_anchors_that_do_not_fit_are_refused() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(DataError, match="s: asked for shape Nx3, found 2x2"):
        Engine(chain()).run([x], anchors={"s": np.zeros((2, 2), np.uint8)})
    with pytest.raises(DataError, match="s: asked for uint8, found int64"):
        Engine(chain()).run([x], anchors={"s": np.zeros((2, 3), np.int64)})
    for names in ({"keep": ["summ"]}, {"anchors": {"summ": x}}):
        with pytest.raises(UnknownNameError, match="computed tensor 'summ': did you mean 'sum'"):
            Engine(chain()).run([x], **names)


def test_an_operation_without_a_kernel_is_refused() -> None:
    program = one_op("fft", [real("x", (N, 3))], real("y", (N, 3)), Execution.FLOAT)
    with pytest.raises(ProgramError, match="y: the engine has no float kernel for fft"):
        Engine(program)


def test_unknown_and_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="backend 'torhc': did you mean 'torch'"):
        make_backend("torhc")
    monkeypatch.setitem(sys.modules, "halfstep.program.backends.torch", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install torch"):
        make_backend("torch")


# Memory


def test_a_tensor_is_dropped_after_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    alive: dict[str, weakref.ref[Any]] = {}
    dropped: dict[str, bool] = {}
    engine = Engine(chain())

    def watched(name: str, step: Any) -> Any:
        def run(*inputs: Any) -> Any:
            dropped.update({f"{other} at {name}": ref() is None for other, ref in alive.items()})
            value = np.array(step(*inputs))
            alive[name] = weakref.ref(value)
            return value

        return run

    steps = [watched(op.output, step) for op, step in zip(chain().ops, engine._steps, strict=True)]
    monkeypatch.setattr(engine, "_steps", steps)
    engine.run([random_reals((2, 3))])
    assert dropped["q at r:real"]
    assert dropped["e at sum"]
    assert not dropped["r at sum"]
    assert dropped["r at y"]


def test_an_unread_tensor_does_not_stay() -> None:
    x, y, z = (codes(name, (N, 4), grid()) for name in "xyz")
    ops = [Op("reshape", ("x",), name, Execution.COPY, {"shape": (N, 4)}) for name in ("z", "y")]
    program = IntProgram("reference", ("x",), ("y",), {t.name: t for t in (x, y, z)}, tuple(ops))
    values = random_codes((3, 4))
    run = Engine(program).run([values], keep=["z"])
    np.testing.assert_array_equal(run.kept["z"], values)
    np.testing.assert_array_equal(run.outputs[0], values)


def test_16_bit_unsigned_codes_keep_their_type_on_torch() -> None:
    on = grid(1, 0, QType(16, False))
    table = np.arange(2**16)[::-1].astype(np.uint16)
    inputs = [codes("x", (N, 3), on), Tensor("t", table.shape, None, "uint16", table)]
    program = one_op("lookup", inputs, codes("y", (N, 3), on), Execution.INTEGER)
    x = np.asarray([[0, 40000, 65535]], np.uint16)
    for backend in ("numpy", "torch"):
        found = Engine(program, backend).run([x]).outputs[0]
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, [[65535, 25535, 0]])
