"""Power-of-two scales: methods that weigh errors choose the power by its error."""

from typing import Any

import numpy as np
import pytest
import torch

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8, UINT8, QType
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.calibrators.minmax import MinMax
from halfstep.quant.calibrators.mse import HALVINGS, Mse
from tests.models import normal

NORMAL = normal(4000)
VALUES = {
    "normal": NORMAL,
    "outliers": torch.cat([NORMAL, torch.tensor([40.0, -25.0])]),
    "relu": NORMAL.relu(),
    "skewed": NORMAL**3 + 2,
    "negative": -NORMAL.abs(),
    "far from zero": NORMAL.abs() + 9,
    "barely above a power": NORMAL.clamp(-1, 1) * 2.0001,
}
TYPES = [
    (UINT8, False),
    (INT8, True),
    (QType(4, signed=False), False),
    (QType(4), True),
    (QType(5), False),
    (QType(3, narrow=True), True),
    (QType(2, signed=False), False),
]


def grid_of(kind: type[Calibrator], values: torch.Tensor, qtype: QType, **how: Any) -> Affine:
    calibrator = kind(qtype, pow2=True, **how)
    calibrator.update(values)
    found = Affine.from_range(*calibrator.range(), qtype, pow2=True, **how)
    assert (np.frexp(found.scale)[0] == 0.5).all(), "no powers of two"
    return found


def squared_error(values: torch.Tensor, grid: Affine) -> float:
    real = values.numpy()
    return float(np.square(np.float64(grid.dequantize(grid.quantize(real)) - real)).sum())


def every_grid(top: Affine, symmetric: bool) -> list[Affine]:
    """All powers of two from the one that clips nothing on downwards, with every zero point."""
    qtype = top.qtype
    zeros = [0] if symmetric else range(qtype.qmin, qtype.qmax + 1)
    return [
        Affine(qtype, np.float32(top.scale * factor), np.int32(zero))
        for factor in HALVINGS
        for zero in zeros
    ]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(("qtype", "symmetric"), TYPES)
def test_mse_finds_the_best_of_all_grids(
    values: torch.Tensor, qtype: QType, symmetric: bool
) -> None:
    found = squared_error(values, grid_of(Mse, values, qtype, symmetric=symmetric))
    top = grid_of(MinMax, values, qtype, symmetric=symmetric)
    # The histogram knows a value to one bin, 1/4096 of the largest or less.
    bin_error = len(values) * (float(values.abs().max()) / 2048) ** 2 / 12
    best = min(squared_error(values, grid) for grid in every_grid(top, symmetric))
    assert found <= best * 1.02 + bin_error


def test_rounding_up_afterwards_is_worse() -> None:
    """What the search is for: the best range may round up to a power that is too wide."""
    worse = 0
    for qtype, symmetric in TYPES:
        for values in VALUES.values():
            mine = squared_error(values, grid_of(Mse, values, qtype, symmetric=symmetric))
            plain = Mse(qtype, symmetric=symmetric)
            plain.update(values)
            rounded = Affine.from_range(*plain.range(), qtype, symmetric=symmetric, pow2=True)
            assert mine <= squared_error(values, rounded) * 1.02
            worse += squared_error(values, rounded) > 1.3 * mine
    assert worse > 5


@pytest.mark.parametrize(("qtype", "symmetric"), TYPES)
def test_mse_per_channel_takes_the_best_power(qtype: QType, symmetric: bool) -> None:
    weight = torch.stack([v[:500] for v in VALUES.values()])
    found = grid_of(Mse, weight, qtype, axis=0, symmetric=symmetric)
    for index, row in enumerate(weight):
        mine = squared_error(row, Affine(qtype, found.scale[index], found.zero_point[index]))
        ends = float(min(row.min(), 0)), float(max(row.max(), 0))
        tried = [
            Affine.from_range(*np.multiply(ends, factor), qtype, symmetric=symmetric, pow2=True)
            for factor in HALVINGS
        ]
        assert mine <= min(squared_error(row, grid) for grid in tried) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 9, 12, 16])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_mse_of_any_width_is_never_worse_than_minmax(bits: int, values: torch.Tensor) -> None:
    qtype = QType(bits, signed=False)
    calibrator, widest = Mse(qtype, pow2=True), MinMax(qtype)
    for each in (calibrator, widest):
        each.update(values)
    ends = zip(calibrator.range(), widest.range(), strict=True)
    found, plain = calibrator.squared_error(*(np.array(pair) for pair in ends))
    assert found <= plain
