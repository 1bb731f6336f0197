"""Hypothesis strategies for networks: which step fits behind which value, and with which options.

``OPTIONS[kind](draw, shape)`` draws the options of a step that reads a value of this shape, or is
``None`` where the kind does not fit it. Shrinking goes towards the first kind, one step, small
sizes and plain grids.
"""

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.layers import ACTIVATIONS, BINARY, Shape
from tests.fuzz.networks import DATA, GRIDS, PARAMETERS, Network, Step, input_shape, result_shape

Draw = Callable[[Any], Any]
Options = dict[str, Any] | None
LARGEST_VALUE = 1200
MOST_STEPS = 6


def _one_of(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def _windows(draw: Draw, sizes: Shape, most_padding: int = 2) -> list[tuple[int, ...]]:
    """For each axis: kernel, stride, dilation and padding before and after, which fit."""
    found = []
    for size in sizes:
        before = draw(st.integers(0, most_padding))
        after = draw(st.sampled_from((before, 0, most_padding)))
        kernel = draw(st.integers(1, min(3, size + before + after)))
        room = size + before + after - 1
        dilation = draw(st.integers(1, min(2, room // (kernel - 1)))) if kernel > 1 else 1
        found.append((kernel, draw(st.integers(1, 3)), dilation, before, after))
    return found


def _conv(draw: Draw, shape: Shape) -> Options:
    if len(shape) not in (2, 3):
        return None
    windows = _windows(draw, shape[1:])
    kernel, stride, dilation, before, after = zip(*windows, strict=True)
    groups = _one_of(draw, 1, shape[0], *(g for g in (2, 3) if shape[0] % g == 0))
    return {
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": tuple(zip(before, after, strict=True)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }


def _conv_transpose(draw: Draw, shape: Shape) -> Options:
    if len(shape) not in (2, 3):
        return None
    kernel, stride, dilation, _, _ = zip(*_windows(draw, shape[1:], 0), strict=True)
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, min(1, most))) for most in reach)
    more = tuple(draw(st.integers(0, most - 1)) for most in map(max, stride, dilation))
    sizes = zip(shape[1:], kernel, stride, dilation, padding, more, strict=True)
    if any((n - 1) * s + d * (k - 1) + 1 + m - 2 * p < 1 for n, k, s, d, p, m in sizes):
        return None
    groups = _one_of(draw, 1, *(g for g in (2, 3) if shape[0] % g == 0))
    return {
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "output_padding": more,
        "groups": groups,
        "bias": draw(st.booleans()),
    }


def _pool(draw: Draw, shape: Shape) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    if len(shape) not in (2, 3):
        return None
    windows = _windows(draw, shape[1:], 0)
    kernel, stride, dilation, _, _ = zip(*windows, strict=True)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return options | {"ceil_mode": draw(st.booleans())}, dilation


def _max_pool(draw: Draw, shape: Shape) -> Options:
    found = _pool(draw, shape)
    return found and found[0] | {"dilation": found[1]}


def _avg_pool(draw: Draw, shape: Shape) -> Options:
    found = _pool(draw, shape)
    if found is None:
        return None
    options = found[0] | {"count_include_pad": draw(st.booleans())}
    if len(shape) == 3:
        options["divisor_override"] = _one_of(draw, None, None, 3)
    return options


def _reduce(draw: Draw, shape: Shape) -> Options:
    axes = draw(st.sets(st.integers(1, len(shape)), min_size=1))
    options = {"op": _one_of(draw, "mean", "mean", "sum"), "axes": tuple(sorted(axes))}
    return options | {"keepdim": draw(st.booleans())}


def _constant(draw: Draw, shape: Shape) -> Options:
    kept = draw(st.integers(0, len(shape)))
    sizes = tuple(_one_of(draw, size, 1) for size in shape[len(shape) - kept :])
    op = _one_of(draw, "add", "sub", "mul", "minimum")
    return {"op": op, "shape": sizes, "left": draw(st.booleans())}


def _scalar(draw: Draw, shape: Shape) -> Options:
    del shape
    return {"op": _one_of(draw, "add", "sub", "mul"), "value": _one_of(draw, 0.5, -1.0, 3.7, 1e-3)}


def _split(draw: Draw, shape: Shape) -> Options:
    factors = [n for n in range(1, shape[0] + 1) if shape[0] % n == 0]
    first = _one_of(draw, *factors)
    return {"sizes": (first, shape[0] // first)} if len(shape) < 4 else None


def _slice(draw: Draw, shape: Shape) -> Options:
    axis = draw(st.integers(1, len(shape)))
    start = draw(st.integers(0, shape[axis - 1] - 1))
    stop = draw(st.integers(start + 1, shape[axis - 1]))
    return {"axis": axis, "start": start, "stop": stop, "step": draw(st.integers(1, 2))}


def _pad(draw: Draw, shape: Shape) -> Options:
    mode = _one_of(draw, "constant", "constant", "reflect", "replicate", "circular")
    n_axes = len(shape) - 1
    if n_axes not in (1, 2):
        return None
    low = -1 if mode == "constant" else 0
    sizes = []
    for size in reversed(shape[1:]):
        most = min(2, size - 1) if mode != "replicate" else 2
        sizes += [draw(st.integers(low if size > 2 else 0, most)) for _ in range(2)]
    value = _one_of(draw, 0.0, 0.0, 1.0) if mode == "constant" else None
    return {"sizes": tuple(sizes), "mode": mode, "value": value}


def _upsample(draw: Draw, shape: Shape) -> Options:
    modes = {2: ("nearest",), 3: ("nearest", "nearest", "bilinear")}.get(len(shape))
    return modes and {"factor": draw(st.integers(2, 3)), "mode": _one_of(draw, *modes)}


def _matrix(options: Callable[[Draw, Shape], Options]) -> Callable[[Draw, Shape], Options]:
    return lambda draw, shape: options(draw, shape) if len(shape) >= 2 else None


def _spatial(draw: Draw, shape: Shape) -> Options:
    del draw
    return {} if len(shape) in (2, 3) else None


OPTIONS: dict[str, Callable[[Draw, Shape], Options]] = {
    "activation": lambda draw, shape: {"function": _one_of(draw, *ACTIVATIONS)},
    "conv": _conv,
    "linear": lambda draw, shape: {
        "out_features": draw(st.integers(1, 6)),
        "bias": draw(st.booleans()),
    },
    "binary": lambda draw, shape: {"op": _one_of(draw, *BINARY)},
    "constant": _constant,
    "scalar": _scalar,
    "concat": lambda draw, shape: {"axis": draw(st.integers(1, len(shape)))},
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_pool": _spatial,
    "reduce": _reduce,
    "softmax": lambda draw, shape: {"axis": draw(st.integers(1, len(shape)))},
    "matmul": _matrix(lambda draw, shape: {"scale": _one_of(draw, 1, 0.5, 0.3)}),
    "attention": _matrix(lambda draw, shape: {}),
    "conv_transpose": _conv_transpose,
    "layer_norm": lambda draw, shape: {"affine": draw(st.booleans())},
    "batch_norm": lambda draw, shape: {} if len(shape) <= 3 else None,
    "prelu": lambda draw, shape: {},
    "flatten": lambda draw, shape: {},
    "split": _split,
    "transpose": lambda draw, shape: {
        "perm": tuple(draw(st.permutations(range(1, len(shape) + 1))))
    },
    "slice": _slice,
    "pad": _pad,
    "expand": lambda draw, shape: {"times": draw(st.integers(1, 3))} if len(shape) < 4 else None,
    "upsample": _upsample,
}
# Thirteen functions in one kind: as often as several.
_KINDS = (*OPTIONS, *["activation"] * 3, *["binary"] * 2)
_OF_TWO = ("binary", "concat", "matmul")


def _partners(kind: str, options: dict[str, Any], shapes: list[Shape], first: int) -> list[int]:
    """The values that may be the second operand; the first is always one of them."""
    shape = shapes[first]

    def fits(other: Shape) -> bool:
        if kind == "concat":
            axis = options["axis"] - 1
            rest = (*shape[:axis], *shape[axis + 1 :])
            return len(other) == len(shape) and rest == (*other[:axis], *other[axis + 1 :])
        if kind == "matmul":
            return len(other) == len(shape) and other[:-2] + other[-1:] == shape[:-2] + shape[-1:]
        # Axes of a sample are counted from the batch, so that only equal ranks broadcast.
        pairs = zip(shape, other, strict=False)
        return len(other) == len(shape) and all(a == b or 1 in (a, b) for a, b in pairs)

    return [index for index, other in enumerate(shapes) if fits(other)]


def _step(draw: Draw, shapes: list[Shape], n_words: int) -> Step | None:
    usable = range(n_words, len(shapes))
    first = usable[-1 - draw(st.sampled_from((0, 0, 0, 1, 2))) % len(usable)]
    kind = _one_of(draw, *_KINDS)
    options = OPTIONS[kind](draw, shapes[first])
    if options is None:
        return None
    reads = (first,)
    if kind in _OF_TWO:
        partners = [i for i in _partners(kind, options, shapes, first) if i >= n_words]
        reads = tuple(draw(st.permutations((first, _one_of(draw, *partners)))))
    return Step(kind, reads, options)


_IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
_ROWS = st.tuples(st.integers(1, 5), st.integers(1, 8))
_VECTORS = st.tuples(st.integers(1, 9))
_INPUTS = st.one_of(_IMAGES, _ROWS, _VECTORS, st.tuples(*(st.integers(1, 4) for _ in range(4))))


@st.composite
def networks(draw: Draw) -> Network:
    """Networks of up to six steps."""
    first = draw(_INPUTS)
    inputs: tuple[Any, ...] = (first, first) if draw(st.booleans()) else (first,)
    steps: list[Step] = []
    n_words = 0
    if draw(st.sampled_from((False,) * 9 + (True,))):
        inputs, n_words = (("words", 7, draw(st.integers(1, 5))),), 1
        steps = [Step("embedding", (0,), {"rows": 7, "columns": draw(st.integers(1, 6))})]
    shapes = [input_shape(shape) for shape in inputs]
    shapes += [result_shape(step, [shapes[i] for i in step.reads]) for step in steps]
    for _ in range(draw(st.integers(1, MOST_STEPS))):
        step = _step(draw, shapes, n_words)
        if step is None:
            continue
        try:
            shape = result_shape(step, [shapes[index] for index in step.reads])
        except (RuntimeError, ValueError):
            continue  # torch itself refuses the combination, such as an empty pool
        if 0 < math.prod(shape) <= LARGEST_VALUE and 1 <= len(shape) <= 4:
            steps.append(step)
            shapes.append(shape)
    if not steps:
        steps = [Step("activation", (0,), {"function": "relu"})]
    n_values = len(inputs) + len(steps)
    also = draw(st.none() | st.integers(len(inputs), n_values - 1))
    return Network(
        inputs,
        tuple(steps),
        None if also == n_values - 1 else also,
        parameters=_one_of(draw, *PARAMETERS),
        grids=_one_of(draw, *GRIDS),
        data=_one_of(draw, *DATA),
        weight_bits=_one_of(draw, 8, 8, 4, 2, 3, 5, 6, 7),
        activation_bits=_one_of(draw, 8, 8, 8, 4, 6, 2),
        per_channel=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
