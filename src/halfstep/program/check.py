"""The executable specification of an integer program: what every producer must satisfy.

``check(program)`` raises ``ProgramError`` at the first violation. The rules, by name:

1. order: an operation reads only inputs, constants and earlier outputs; names are made once.
2. worlds: codes and real values meet only in quantize, in dequantize, and where an integer kernel
   scales its sums to real values.
3. codes: constant codes lie within their type, and so does a clamp; computed codes have one scale;
   a table has an entry, of the output's type, for every input code.
4. copies: an operation that copies, or averages codes, has one grid for all its data inputs and
   its output.
5. formulas: every integer and dequantized operation names a formula of its kind, or needs none.
6. bias: int32 or as wide as the accumulators, zero point 0, scale ``f32(scale_in * scale_weight)``.
7. weights: constant and symmetric; channels only along the axis that the output keeps; groups
   within them only where axis and formula can add sums of different scales.
8. accumulators: the largest possible absolute sum fits the accumulators, and those of 31-bit
   multipliers an int32, shifted to the left first where the formula does so.
9. pairs: where kernels of the target add two products in fewer bits, the sum fits these.
"""

import math

import numpy as np
from numpy.typing import NDArray

from halfstep.core.execution import Execution
from halfstep.core.pooling import AVERAGE_OF_CODES, divided_multiplier
from halfstep.core.qtype import ACCUMULATOR_BITS
from halfstep.core.requant import (
    GROUPS,
    INT32_ONLY,
    SCALED,
    SHIFTED_FIRST,
    fixed_point_multiplier,
    float_multiplier,
    real_multiplier,
)
from halfstep.errors import ProgramError
from halfstep.program.bounds import (
    REDUCED,
    WEIGHTED,
    accumulator_bounds,
    largest_step,
    reduced_terms,
    weight_axis,
    weight_scales,
)
from halfstep.program.formulas import FORMULAS
from halfstep.program.ir import IntProgram, Op
from halfstep.program.saturation import prove_sums

_CODES = (Execution.INTEGER, Execution.SCALED, Execution.DEQUANTIZED, Execution.COPY)
_SUMS = (*WEIGHTED, "matmul")
_WITHOUT_FORMULA = ("max_pool", "lookup")


def check(program: IntProgram) -> IntProgram:
    """Return ``program`` if it keeps every rule.

    Raises:
        ProgramError: naming the operation, the rule and what was found.
    """
    if program.accumulator_bits not in ACCUMULATOR_BITS:
        raise ProgramError(
            f"program accumulators of {program.accumulator_bits} bits: asked for "
            f"{ACCUMULATOR_BITS[0]} to {ACCUMULATOR_BITS[-1]}, in which the engine adds exactly"
        )
    known = set(program.inputs) | {n for n, t in program.tensors.items() if t.data is not None}
    for op in program.ops:
        missing = [name for name in op.inputs if name not in known]
        _require(not missing, op, "order", f"reads {missing} before they exist")
        _require(op.output not in known, op, "order", f"makes {op.output} a second time")
        known.add(op.output)
        _check_worlds(program, op)
        _check_codes(program, op)
        _check_formula(program, op)
        if op.execution in _CODES:
            _check_integer(program, op)
    absent = [name for name in program.outputs if name not in known]
    if absent:
        raise ProgramError(f"program outputs {absent} are never made")
    if program.pair_sum_bits is not None:
        _check_pairs(program)
    return program


def _require(holds: bool, op: Op, rule: str, found: str) -> None:
    if not holds:
        raise ProgramError(f"{op.output}: {op.kind} breaks the rule '{rule}': {found}")


def _check_worlds(program: IntProgram, op: Op) -> None:
    codes_in = [program.tensor(name).grid is not None for name in op.inputs]
    codes_out = program.tensor(op.output).grid is not None
    if op.execution is Execution.EDGE:
        crosses = codes_in[0] != codes_out and codes_out == (op.kind == "quantize")
        found = f"{op.kind} from {'codes' if codes_in[0] else 'real'}"
        _require(op.kind in ("quantize", "dequantize") and crosses, op, "worlds", found)
    elif op.execution is Execution.FLOAT:
        _require(not any(codes_in) and not codes_out, op, "worlds", "a float op with codes")
    elif op.execution is Execution.SCALED:
        _require(all(codes_in) and not codes_out, op, "worlds", "scaled sums that are codes")
    else:
        _require(codes_out and codes_in[0], op, "worlds", "an integer op with real values")


def _check_codes(program: IntProgram, op: Op) -> None:
    for name in op.inputs:
        tensor = program.tensor(name)
        if tensor.grid is None or tensor.data is None or tensor.data.size == 0:
            continue
        low, high = int(tensor.data.min()), int(tensor.data.max())
        qtype = tensor.grid.qtype
        inside = qtype.qmin <= low and high <= qtype.qmax
        _require(inside, op, "codes", f"{name} has codes {low} to {high}, its type is {qtype}")
    grid = program.tensor(op.output).grid
    if grid is None:
        return
    _require(grid.axis is None, op, "codes", f"computed codes with scales along axis {grid.axis}")
    if op.clamp is not None:
        inside = grid.qtype.qmin <= op.clamp[0] <= op.clamp[1] <= grid.qtype.qmax
        _require(inside, op, "codes", f"clamp {op.clamp} does not fit {grid.qtype}")
    if op.kind == "lookup":
        source, table = program.grid(op.inputs[0]).qtype, program.constant(op.inputs[1])
        n_codes = source.qmax - source.qmin + 1
        _require(table.shape == (n_codes,), op, "codes", f"a table of {table.shape} for {source}")
        inside = grid.qtype.qmin <= table.min() and table.max() <= grid.qtype.qmax
        _require(inside, op, "codes", f"a table with codes outside of {grid.qtype}")


def _check_integer(program: IntProgram, op: Op) -> None:
    if op.execution is Execution.COPY or op.formula in AVERAGE_OF_CODES:
        out = program.grid(op.output)
        grids = [program.tensor(name).grid for name in op.inputs]
        same = all(grid is None or grid.same_as(out) for grid in grids)
        _require(same, op, "copies", f"grids {[str(g) for g in grids]} and {out}")
        return
    if op.kind in WEIGHTED:
        _check_weighted(program, op)
    if op.kind in (*_SUMS, *REDUCED):
        bounds = accumulator_bounds(program, op)
        bits = 32 if op.formula in INT32_ONLY else program.accumulator_bits
        found = f"accumulators may reach {bounds.max()} in channel {bounds.argmax()}"
        found += f", and have {bits} bits"
        _require(int(bounds.max()) < 1 << (bits - 1), op, "accumulators", found)
        _check_shift(program, op, bounds)
    elif op.kind == "mul":
        steps = [largest_step(program.grid(name)) for name in op.inputs]
        _check_shift(program, op, np.array([math.prod(steps)]))


def _check_shift(program: IntProgram, op: Op, bounds: NDArray[np.int64]) -> None:
    if op.formula not in SHIFTED_FIRST:
        return
    shift = _shift(program, op).clip(min=0)
    largest = (bounds * 2.0**shift).max()
    found = f"sums up to {bounds.max()}, shifted to the left by up to {shift.max()} bits before "
    found += (
        f"they are multiplied, and 32 bits hold no {largest:.3g}; widen the range of the output"
    )
    _require(bool(largest < 2**31), op, "accumulators", found)


def _shift(program: IntProgram, op: Op) -> NDArray[np.int64]:
    """How far the formula shifts to the left, or negative."""
    source, *others = (program.grid(name).channel_scale for name in (*op.inputs[:2], op.output))
    if op.kind in REDUCED:
        count = 1 if op.kind == "sum" else reduced_terms(program, op)
        return np.array(divided_multiplier(count, source, others[-1])[1])
    if op.kind == "mul":  # the multiplier is float32 before it is anything else
        return fixed_point_multiplier(float_multiplier(source, *others))[1]
    if op.kind == "matmul":
        others[1] = others[1] / np.float32(op.attrs["alpha"])
    if op.kind in WEIGHTED:
        others[0] = weight_scales(op, program.grid(op.inputs[1]))
    return fixed_point_multiplier(real_multiplier(source, *others))[1]


def _check_pairs(program: IntProgram) -> None:
    unsafe = prove_sums(program, "int16_pairs").unsafe
    if not unsafe:
        return
    first, *others = unsafe
    more = f". So may those of {', '.join(op.site for op in others)}" if others else ""
    advice = "Run halfstep.repair_pair_sums(model) behind all that changes weights, and lower again"
    if first.kind == "matmul":
        advice = "Plan both of its inputs as uint8"
    raise ProgramError(
        f"{first.site}: {first.kind} breaks the rule 'pairs': two products are added in "
        f"{program.pair_sum_bits} bits on some CPUs of target '{program.target}', found "
        f"{first.found}{more}. {advice}."
    )


def _check_formula(program: IntProgram, op: Op) -> None:
    known = FORMULAS.get(op.kind, {})
    if op.execution is Execution.SCALED:
        known = SCALED if op.kind in _SUMS else {}
    if op.formula is None:
        # A quantize without one divides: the meaning of every grid.
        needed = op.execution in _CODES[:-1] and op.kind not in _WITHOUT_FORMULA
        _require(not needed, op, "formulas", f"no formula; {op.kind} has {', '.join(known)}")
        return
    found = f"formula {op.formula!r}; {op.kind} has {', '.join(known) or 'none'}"
    _require(op.formula in known, op, "formulas", found)
    if op.kind == "softmax" and op.formula != "dequantized":
        qtype = program.grid(op.inputs[0]).qtype
        found = f"a softmax by {op.formula} of {qtype}, not of 8 bits"
        _require(qtype.bits <= 8, op, "formulas", found)
    if op.formula == "fixed_point":
        out = program.grid(op.output)
        found = f"probabilities in fixed point on {out}, not on steps of 1/256"
        _require(float(out.scale) == 1 / 256, op, "formulas", found)


def _check_weighted(program: IntProgram, op: Op) -> None:
    constant = all(program.tensor(name).data is not None for name in op.inputs[1:])
    _require(constant, op, "weights", "weights or biases that are computed")
    weight = program.grid(op.inputs[1])
    _require(not np.any(weight.zero_point), op, "weights", "weights with a zero point")
    wanted = weight_axis(op)
    _require(
        weight.axis in (None, wanted), op, "weights", f"axis {weight.axis}, not None or {wanted}"
    )
    if weight.group_size is not None:
        found = f"groups along axis {weight.axis} with formula {op.formula!r}"
        _require(wanted == 0 and op.formula in GROUPS, op, "weights", found)
    if len(op.inputs) > 2:
        bias = program.grid(op.inputs[2])
        scale = program.grid(op.inputs[0]).scale * weight_scales(op, weight)
        fits = bias.qtype.signed and bias.qtype.bits in (32, program.accumulator_bits)
        exact = fits and np.array_equal(bias.scale, scale)
        found = f"bias is {bias}, not int32 on scale_in * scale_weight with zero point 0"
        _require(exact and not np.any(bias.zero_point), op, "bias", found)
