"""Integer-arithmetic-only inference as published: identities that hold to the last bit.

B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018 (arXiv 1712.05877), sections 2.3 and 2.4, with the two roundings of gemmlowp.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8_NARROW
from halfstep.core.requant import double_rounding, fixed_point_multiplier, float_scale
from halfstep.program.check import check
from halfstep.program.engine import Engine
from tests.models import seeded
from tests.pipeline import arrays, lowered, normal_inputs
from tests.program.build import N, codes, grid, one_op, weighted


def random_codes(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_two_roundings_miss_by_three_quarters_at_most() -> None:
    """The first rounding is off by up to 1/4 where the shift is 1, the second by 1/2."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**20), 2**20, 100_000)
    differ, largest = 0, 0.0
    ratios = np.exp(rng.uniform(np.log(2.0**-12), np.log(0.5), 40)).astype(np.float32)
    for ratio in ratios:
        one = np.float32(1)
        q, shift = (int(part) for part in fixed_point_multiplier(np.float64(ratio)))
        found = double_rounding(acc, ratio, one, one, 0)
        exact = acc * (q * 2.0 ** (shift - 31))
        largest = max(largest, float(np.abs(found - exact).max()))
        distance = np.abs(found - np.rint(exact))
        assert distance.max() <= 1
        differ += int((distance > 0).sum())
    assert largest <= 0.75
    assert largest > 0.7, "the bound is reached"
    assert 0.001 < differ / (acc.size * ratios.size) < 0.1


LAYERS = {
    "linear": (lambda: nn.Linear(24, 16), (24,)),
    "conv": (lambda: nn.Conv2d(3, 16, 3, padding=1), (3, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_integer_layer_is_the_simulated_one_to_one_code(name: str) -> None:
    make, shape = LAYERS[name]
    inputs = normal_inputs(shape)
    found = lowered(seeded(make()), inputs, target="reference", redraw=False)
    (op,) = [op for op in found.program.ops if op.macs]
    ops = [replace(o, formula="double_rounding") if o is op else o for o in found.program.ops]
    program = check(replace(found.program, ops=tuple(ops)))
    x = inputs(64, 9)
    (integer,) = Engine(program).run(arrays(x)).outputs
    with torch.no_grad():
        simulated = found.quantized(*x).numpy()
    distance = np.rint((integer - simulated) / program.grid(op.output).scale)
    assert np.abs(distance).max() <= 1
    assert (distance == 0).mean() >= 0.9


def test_zero_points_may_be_taken_out_of_the_products() -> None:
    """Equation 7: N Z1 Z2 - Z1 a2 - Z2 a1 + sum q1 q2, for a product of two activations."""
    a, b = random_codes(4, 5, 30), random_codes(4, 30, 6, seed=1)
    on_a, on_b, on_y = grid(0.02, 120), grid(0.03, 131), grid(0.9, 127)
    program = one_op(
        "matmul",
        [codes("a", (N, 5, 30), on_a), codes("b", (N, 30, 6), on_b)],
        codes("y", (N, 5, 6), on_y),
        Execution.INTEGER,
        attrs={"alpha": 1.0},
        formula="float",
    )
    q1, q2 = a.astype(np.int64), b.astype(np.int64)
    rows, columns = q1.sum(axis=2, keepdims=True), q2.sum(axis=1, keepdims=True)
    acc = 30 * 120 * 131 - 120 * columns - 131 * rows + q1 @ q2
    np.testing.assert_array_equal(acc, (q1 - 120) @ (q2 - 131))
    expected = np.clip(float_scale(acc, on_a.scale, on_b.scale, on_y.scale, 127), 0, 255)
    assert expected.std() > 10
    np.testing.assert_array_equal(Engine(program).run([a, b]).outputs[0], expected)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_padding_with_the_zero_point_is_padding_with_zero(backend: str) -> None:
    weight = np.random.default_rng(2).integers(-127, 128, (5, 3, 3, 3)).astype(np.int8)
    bias = np.arange(5, dtype=np.int32) * 300
    attrs = {"stride": (1, 2), "dilation": (1, 1), "groups": 1, "padding": ((1, 2), (2, 0))}
    inside = ((0, 0), (0, 0))
    x, margins = random_codes(2, 3, 6, 7), [(0, 0), (0, 0), *attrs["padding"]]  # type: ignore[misc]
    on = {"x_grid": grid(0.05, 77), "weight_grid": grid(0.01, 0, INT8_NARROW)}
    shape = (N, 5, 7, 4)
    padded = weighted("conv", (N, 3, 6, 7), shape, weight, bias, attrs, **on)
    plain = weighted("conv", (N, 3, 9, 9), shape, weight, bias, {**attrs, "padding": inside}, **on)
    (found,) = Engine(padded, backend).run([x]).outputs
    (expected,) = Engine(plain, backend).run([np.pad(x, margins, constant_values=77)]).outputs
    np.testing.assert_array_equal(found, expected)
    (other,) = Engine(plain, backend).run([np.pad(x, margins, constant_values=0)]).outputs
    assert (other != expected).any()


def test_a_concatenation_copies_codes() -> None:
    """Appendix A.3: with one grid for all of its inputs, a concatenation moves bytes."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.one(x), self.other(x)], 1).relu()

    inputs = normal_inputs((3, 4, 4))
    found = lowered(Joined(), inputs)
    run = hs.Engine(found.program).run(arrays(inputs(3, 5)), keep=found.program.sites)
    joined = np.concatenate([run.kept["one:out"], run.kept["other:out"]], axis=1)
    np.testing.assert_array_equal(run.kept["concat:out"], joined)
