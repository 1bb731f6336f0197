"""Programs for models in C: every operation alone, many of them side by side in one program.

One program is compiled once, whatever its number of operations, and a difference names its site.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.program.ir import IntProgram, Op, Tensor
from tests.program.build import N, codes, grid, one_op, real, weighted

Array = NDArray[Any]
Case = tuple[IntProgram, list[Array]]
INTEGER, COPY = Execution.INTEGER, Execution.COPY
SAMPLES = 2
IMAGE = (4, 6, 5)


def merged(cases: dict[str, Case]) -> Case:
    """All programs as one, with real inputs and outputs: a model in C quantizes on its own."""
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []
    inputs: list[str] = []
    outputs: list[str] = []
    arrays: list[Array] = []
    for case, (program, values) in cases.items():
        for name, tensor in program.tensors.items():
            tensors[f"{case}.{name}"] = replace(tensor, name=f"{case}.{name}")
        for name, value in zip(program.inputs, values, strict=True):
            site, on = f"{case}.{name}", program.tensor(name).grid
            given = site if on is None else f"{site}:real"
            inputs.append(given)
            arrays.append(value if on is None else on.dequantize(value))
            if on is not None:
                tensors[given] = Tensor(given, program.tensor(name).shape)
                ops.append(Op("quantize", (given,), site, Execution.EDGE))
        for op in program.ops:
            names = tuple(f"{case}.{name}" for name in op.inputs)
            ops.append(replace(op, inputs=names, output=f"{case}.{op.output}"))
        for name in program.outputs:
            out = f"{case}.{name}:real"
            tensors[out] = Tensor(out, program.tensor(name).shape)
            ops.append(Op("dequantize", (f"{case}.{name}",), out, Execution.EDGE))
            outputs.append(out)
    return IntProgram("c99", tuple(inputs), tuple(outputs), tensors, tuple(ops)), arrays


def random_codes(shape: tuple[int, ...], qtype: QType = INT8, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(qtype.qmin, qtype.qmax + 1, (SAMPLES, *shape)).astype(qtype.storage)


def codes_on(qtype: QType, scale: float = 0.05) -> Affine:
    """A grid with an odd zero point away from the middle."""
    return grid(scale, qtype.qmin + (qtype.qmax - qtype.qmin) // 3 | 1, qtype)


# Sums of products


def convolution(
    kind: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    formula: str,
    bits: int = 8,
    pow2: bool = False,
    qtype: QType = INT8,
    **attrs: Any,
) -> Case:
    """Random weights of so many bits; with ``pow2``, sums that are often ties."""
    space = len(x) - 1
    attrs = {
        "stride": (1,) * space,
        "padding": ((0, 0),) * space,
        "dilation": (1,) * space,
        "groups": 1,
        **attrs,
    }
    on = QType(bits, narrow=bits > 1)
    rng = np.random.default_rng(bits + len(x))
    values = rng.integers(on.qmin, on.qmax + 1, weight).astype(np.int8)
    axis = 1 if kind == "conv_transpose" else 0
    n_scales = weight[axis]
    scales = np.full(n_scales, 2.0**-6) if pow2 else rng.uniform(0.5, 2, n_scales) * 0.01
    terms = np.prod(weight) / weight[axis]
    spread = 0.3 * np.sqrt(terms) * on.qmax if on.qmax else np.sqrt(terms)
    steps = 2.0 ** np.round(np.log2(spread)) if pow2 else spread
    n_outputs = n_scales * (attrs["groups"] if axis else 1)
    program = weighted(
        kind,
        (N, *x),
        (N, n_outputs, *x[1:]),
        values,
        rng.integers(-99, 99, n_outputs).astype(np.int32),
        attrs,
        x_grid=codes_on(qtype, 2.0**-5 if pow2 else 0.05),
        weight_grid=grid(scales, np.zeros(n_scales), on, axis),
        out_grid=grid((2.0**-11 if pow2 else 0.0005) * steps, -7, INT8),
        formula=formula,
    )
    return program, [random_codes(x, qtype, seed=bits)]


def rows(shape: tuple[int, ...], formula: str, bits: int = 8) -> Case:
    on = QType(bits, narrow=True)
    weight = np.random.default_rng(bits).integers(on.qmin, on.qmax + 1, (7, shape[-1]))
    program = weighted(
        "linear",
        (N, *shape),
        (N, *shape[:-1], 7),
        weight.astype(np.int8),
        x_grid=codes_on(INT8),
        weight_grid=grid(np.linspace(0.01, 0.03, 7), np.zeros(7), on, 0),
        out_grid=grid(0.0008 * on.qmax, 3, INT8),
        formula=formula,
        clamp=(-90, 100),
    )
    return program, [random_codes(shape)]


def matrices(a: tuple[int, ...], b: tuple[int, ...], formula: str) -> Case:
    shape = (N, *np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    inputs = [codes("a", (N, *a), codes_on(INT8)), codes("b", (N, *b), codes_on(UINT8))]
    out = codes("y", shape, grid(1.7, 5, INT8))
    fields: dict[str, Any] = {"attrs": {"alpha": 0.3}, "formula": formula}
    program = one_op("matmul", inputs, out, INTEGER, **fields)
    return program, [random_codes(a), random_codes(b, UINT8)]


def sums_of_products(formula: str) -> dict[str, Case]:
    """Convolutions of every form, packed weights of every width, linear layers, matrices."""
    grouped = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
    spread = {"stride": (2, 3), "padding": ((1, 1), (0, 2)), "output_padding": (1, 0)}
    same = ((1, 1), (1, 1))
    return {
        "conv": convolution("conv", IMAGE, (3, 4, 3, 3), formula, padding=same),
        "conv_unsigned": convolution("conv", IMAGE, (3, 4, 1, 1), formula, qtype=UINT8),
        "conv_grouped": convolution("conv", IMAGE, (6, 2, 3, 2), formula, groups=2, **grouped),
        "conv_ties": convolution("conv", IMAGE, (8, 4, 3, 3), formula, pow2=True),
        "conv_1d": convolution("conv", (3, 9), (5, 3, 4), formula, stride=(2,), padding=((3, 1),)),
        "conv_crop": convolution("conv", IMAGE, (2, 4, 2, 2), formula, padding=((-1, 0), (0, -1))),
        "depthwise": convolution("conv", IMAGE, (4, 1, 3, 2), formula, groups=4, **grouped),
        "depthwise_twice": convolution("conv", IMAGE, (8, 1, 3, 3), formula, groups=4),
        "transposed": convolution("conv_transpose", IMAGE, (4, 3, 3, 2), formula, **spread),
        "transposed_grouped": convolution(
            "conv_transpose",
            IMAGE,
            (4, 2, 3, 3),
            formula,
            groups=2,
            **{**spread, "dilation": (2, 1)},
        ),
        "transposed_1d": convolution(
            "conv_transpose", (3, 5), (3, 2, 4), formula, stride=(2,), output_padding=(0,)
        ),
        **{
            f"conv_of_{bits}_bits": convolution("conv", IMAGE, (5, 4, 3, 3), formula, bits)
            for bits in range(1, 9)
        },
        **{
            f"depthwise_of_{bits}_bits": convolution(
                "conv", (5, 4, 4), (5, 1, 3, 3), formula, bits, groups=5, padding=same
            )
            for bits in range(1, 9)
        },
        **{f"linear_of_{bits}_bits": rows((11,), formula, bits) for bits in range(2, 9)},
        "linear_of_rows": rows((3, 2, 9), formula),
        "matmul": matrices((3, 4, 5), (3, 5, 6), formula),
        "matmul_one_for_all": matrices((3, 4, 5), (1, 5, 6), formula),
    }


# Code by code

# Scales of two operands and a result, zero points: of ties, of odd ones, far apart.
PAIRS = [
    ((0.1, 0.1, 0.1), (0, 1, -3)),
    ((1.0, 1.0, 2.0), (-1, 5, 7)),
    ((0.5, 0.25, 1.0), (31, -28, -77)),
    ((0.0473, 0.0231, 0.0657), (13, -99, 3)),
    ((0.013, 0.9, 0.5), (-27, 0, 55)),
    ((1.0, 1e-6, 1e-3), (3, 2, 1)),
]


def every_pair(kind: str, formula: str, pair: tuple[Any, Any]) -> Case:
    """All 65,536 pairs of codes: 256 of the first operand on one axis, of the second on another."""
    (sa, sb, sy), (za, zb, zy) = pair
    sy = 40 * sa * sb if kind == "mul" else sy
    inputs = [
        codes("a", (N, 128, 1), grid(sa, za, INT8)),
        codes("b", (N, 1, 256), grid(sb, zb, INT8)),
    ]
    out = codes("y", (N, 128, 256), grid(sy, zy, INT8))
    program = one_op(kind, inputs, out, INTEGER, formula=formula, clamp=(-120, 119))
    every = np.arange(-128, 128, dtype=np.int8)
    return program, [every.reshape(2, 128, 1), np.tile(every, (2, 1, 1))]


def broadcast(kind: str, formula: str, constant: bool) -> Case:
    """Images and one value a channel."""
    on, other = codes_on(UINT8), codes_on(INT8, 0.03)
    shape = (1, 4, 1, 1) if constant else (N, 4, 1, 1)
    data = random_codes((4, 1, 1))[:1] if constant else None
    inputs = [codes("b", shape, other, data), codes("a", (N, *IMAGE), on)]
    out = codes("y", (N, *IMAGE), grid(0.09, 130, UINT8))
    values = [random_codes(IMAGE, UINT8)] if constant else [
        random_codes((4, 1, 1)), random_codes(IMAGE, UINT8)
    ]  # fmt: skip
    return one_op(kind, inputs, out, INTEGER, formula=formula), values


def table(source: QType, out: QType) -> Case:
    """Every code of a type."""
    n_codes = source.qmax - source.qmin + 1
    values = np.random.default_rng(0).integers(out.qmin, out.qmax + 1, n_codes).astype(out.storage)
    inputs = [codes("x", (N, n_codes), codes_on(source)), real("t", (n_codes,), "int16", values)]
    clamp = (out.qmin + 3, out.qmax - 2)
    program = one_op(
        "lookup", inputs, codes("y", (N, n_codes), codes_on(out)), INTEGER, clamp=clamp
    )
    every = np.arange(source.qmin, source.qmax + 1).astype(source.storage)
    return program, [np.stack([every, every[::-1]])]


def code_by_code(fixed: bool) -> dict[str, Case]:
    """Sums, differences and products of all pairs, broadcast ones, tables."""
    formulas = {"add": "double_rounding", "sub": "double_rounding"}
    formulas["mul"] = "double_rounding" if fixed else "float"
    cases = {
        f"{kind}_{i}": every_pair(kind, formula, pair)
        for kind, formula in formulas.items()
        for i, pair in enumerate(PAIRS)
    }
    for kind, formula in formulas.items():
        cases[f"{kind}_channels"] = broadcast(kind, formula, constant=False)
        cases[f"{kind}_constants"] = broadcast(kind, formula, constant=True)
    cases["lookup"] = table(INT8, INT8)
    cases["lookup_unsigned"] = table(UINT8, UINT8)
    cases["lookup_narrow"] = table(QType(5, narrow=True), UINT8)
    return cases


# Windows and rows


def pool(kind: str, x: tuple[int, ...], out: tuple[int, ...], **fields: Any) -> Case:
    qtype = fields.pop("qtype", INT8)
    copied = kind == "max_pool"
    on = codes_on(qtype)
    y = codes("y", (N, *out), on if copied else grid(fields.pop("scale", 0.04), 9, INT8))
    program = one_op(kind, [codes("x", (N, *x), on)], y, COPY if copied else INTEGER, **fields)
    return program, [random_codes(x, qtype)]


def windows_and_rows(fixed: bool) -> dict[str, Case]:
    """Pools, means, sums and softmax."""
    mean = "double_rounding" if fixed else "divided_scale"
    sums = "double_rounding" if fixed else "float"
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1)), "ceil_mode": False}
    averaged = {**window, "count_include_pad": False, "divisor": None}
    whole = {**averaged, "kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    line = {**averaged, "kernel": (3,), "stride": (2,), "padding": ((1, 1),)}
    ceiled = {**averaged, "ceil_mode": True, "count_include_pad": True, "stride": (2, 2)}
    dilated = {**window, "dilation": (1, 2)}
    out = (4, 3, 5)
    return {
        "max_pool": pool("max_pool", IMAGE, (4, 3, 4), attrs=dilated),
        "max_pool_unsigned": pool("max_pool", IMAGE, (4, 3, 4), attrs=dilated, qtype=UINT8),
        "avg_pool": pool("avg_pool", IMAGE, out, attrs=averaged, formula=mean),
        "avg_pool_padded": pool(
            "avg_pool", IMAGE, out, attrs={**averaged, "count_include_pad": True}, formula=mean
        ),
        "avg_pool_ceil": pool("avg_pool", IMAGE, (4, 4, 3), attrs=ceiled, formula=mean),
        "avg_pool_divisor": pool(
            "avg_pool", IMAGE, out, attrs={**averaged, "divisor": 5}, formula=mean
        ),
        "avg_pool_whole": pool("avg_pool", IMAGE, (4, 3, 2), attrs=whole, formula=mean),
        "avg_pool_1d": pool("avg_pool", (3, 8), (3, 4), attrs=line, formula=mean),
        "global_avg_pool": pool("global_avg_pool", IMAGE, (4, 1, 1), formula=mean),
        "global_avg_pool_1d": pool("global_avg_pool", (7, 11), (7, 1), formula=mean, qtype=UINT8),
        "global_avg_pool_3d": pool("global_avg_pool", (2, 3, 4, 3), (2, 1, 1, 1), formula=mean),
        **reductions(mean),
        "layer_norm": normalization((5, 48), 1, sums, 2),
        "layer_norm_plain": normalization((3, 7), 1, sums, 0),
        "layer_norm_factors": normalization((4, 3, 5), 2, sums, 1),
        **{
            f"softmax_{name}": softmax(shape, axis, qtype)
            for name, shape, axis, qtype in (
                ("rows", (5, 40), -1, INT8),
                ("channels", IMAGE, 1, UINT8),
                ("middle", (3, 7, 2), 2, INT8),
                ("of_4_bits", (9,), 1, QType(4)),
            )
        },
    }


def reductions(formula: str) -> dict[str, Case]:
    """Means and sums along axes in front, behind, apart and all."""
    along = {
        "tokens": ((7, 6), (6,), {"axes": (1,), "keepdim": False}),
        "last": (IMAGE, (4, 6, 1), {"axes": (3,), "keepdim": True}),
        "channels": (IMAGE, (6, 5), {"axes": (1,), "keepdim": False}),
        "apart": (IMAGE, (1, 6, 1), {"axes": (1, 3), "keepdim": True}),
        "all": (IMAGE, (), {"axes": (1, 2, 3), "keepdim": False}),
        "vector": ((11,), (1,), {"axes": (1,), "keepdim": True}),
    }
    means = {
        f"mean_{name}": pool("mean", x, out, attrs=attrs, formula=formula, qtype=qtype)
        for qtype, (name, (x, out, attrs)) in zip((INT8, UINT8) * 3, along.items(), strict=True)
    }
    sums = {
        f"sum_{name}": pool("sum", x, out, attrs=attrs, formula=formula, scale=0.5)
        for name, (x, out, attrs) in along.items()
    }
    return {**means, **sums, "mean_of_pixels": means_of_pixels(formula)}


def means_of_pixels(formula: str) -> Case:
    """Between two pools, where input and output lie channels-last."""
    on, next_to = codes_on(INT8), {"kernel": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
    next_to |= {"padding": ((0, 0), (0, 0)), "ceil_mode": False}
    shapes = {"x": IMAGE, "p": IMAGE, "m": (4, 6, 1), "y": (4, 6, 1)}
    grids = {"x": on, "p": on, "m": grid(0.04, 9, INT8), "y": grid(0.04, 9, INT8)}
    reduced = {"axes": (3,), "keepdim": True}
    ops = (
        Op("max_pool", ("x",), "p", COPY, next_to),
        Op("mean", ("p",), "m", INTEGER, reduced, formula),
        Op("max_pool", ("m",), "y", COPY, next_to),
    )
    tensors = {name: codes(name, (N, *shapes[name]), grids[name]) for name in shapes}
    return IntProgram("c99", ("x",), ("y",), tensors, ops), [random_codes(IMAGE)]


def normalization(shape: tuple[int, ...], n_axes: int, formula: str, n_constants: int) -> Case:
    """Random rows, a row of equal codes, and one of two codes that alternate."""
    on, rng = codes_on(INT8), np.random.default_rng(n_axes)
    size = shape[-n_axes:]
    given = [
        codes("g", size, grid(0.01, -100, INT8), rng.integers(-128, 128, size).astype(np.int8)),
        codes("b", size, grid(0.02, 3, INT8), rng.integers(-128, 128, size).astype(np.int8)),
    ]
    inputs = [codes("x", (N, *shape), on), *given[:n_constants]]
    out = codes("y", (N, *shape), grid(0.031, -9, INT8))
    fields: dict[str, Any] = {"attrs": {"n_axes": n_axes, "eps": 1e-5}, "formula": formula}
    values = random_codes(shape)
    values[0, 0], values[1, 0] = 17, np.where(np.arange(size[-1]) % 2, 4, 5)
    return one_op("layer_norm", inputs, out, INTEGER, **fields), [values]


def softmax(shape: tuple[int, ...], axis: int, qtype: QType) -> Case:
    inputs = [codes("x", (N, *shape), codes_on(qtype, 0.07 * 2.0 ** (8 - qtype.bits)))]
    out = codes("y", (N, *shape), grid(2.0**-8, -128, INT8))
    program = one_op("softmax", inputs, out, INTEGER, attrs={"axis": axis}, formula="integer")
    return program, [random_codes(shape, qtype)]


# Moves


def moved(kind: str, out: tuple[int, ...], qtype: QType, n: int = 1, **attrs: Any) -> Case:
    on = codes_on(qtype)
    inputs = [codes(f"x{i}", (N, *IMAGE), on) for i in range(n)]
    program = one_op(kind, inputs, codes("y", (N, *out), on), COPY, attrs=attrs)
    return program, [random_codes(IMAGE, qtype, seed=i) for i in range(n)]


def moves() -> dict[str, Case]:
    """Everything that copies codes."""
    margins = ((0, 0), (1, 2), (0, -1), (2, 0))
    around = ((0, 0), (0, 0), (2, 1), (1, 3))
    on = codes_on(UINT8)
    rows_of_codes = one_op(
        "embedding",
        [codes("t", (7, 3), on, random_codes((7, 3), UINT8)[0]), real("i", (N, 4), "int64")],
        codes("y", (N, 4, 3), on),
        COPY,
    )
    row = codes("t", (1, 1, 5), on, random_codes((1, 5), UINT8)[:1])
    repeated = one_op("expand", [row], codes("y", (N, 3, 5), on), COPY, attrs={"shape": (N, 3, 5)})
    return {
        "reshape": moved("reshape", (24, 5), INT8, shape=(N, 24, 5)),
        "transpose": moved("transpose", (6, 5, 4), INT8, perm=(0, 2, 3, 1)),
        "slice": moved("slice", (4, 2, 5), INT8, axis=2, start=1, stop=5, step=2),
        "concat": moved("concat", (12, 6, 5), INT8, 3, axis=1),
        "minimum": moved("minimum", IMAGE, UINT8, 2),
        "upsample_nearest": moved("upsample_nearest", (4, 12, 15), INT8, factors=(2, 3)),
        "pad": moved("pad", (7, 5, 7), UINT8, padding=margins, mode="constant", value=0),
        **{
            f"pad_{mode}": moved("pad", (4, 9, 9), INT8, padding=around, mode=mode, value=0)
            for mode in ("reflect", "replicate", "circular")
        },
        "embedding": (rows_of_codes, [np.asarray([[0, 6, 3, 3], [1, 2, 0, 5]])]),
        "expand": (repeated, []),
    }


def every_case(fixed: bool) -> dict[str, Case]:
    """Every operation of a target, by a name for it."""
    return {
        **sums_of_products("double_rounding" if fixed else "float"),
        **code_by_code(fixed),
        **windows_and_rows(fixed),
        **moves(),
    }
