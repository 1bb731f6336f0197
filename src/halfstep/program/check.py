"""The executable specification of an integer program: what every producer must satisfy.

``check(program)`` raises ``ProgramError`` at the first violation. The rules, by name:

1. order: an operation reads only inputs, constants and earlier outputs; names are made once.
2. worlds: codes and real values meet only in quantize and dequantize.
3. codes: constant codes lie within their type; a clamp lies within the output's type.
4. copies: an operation that copies has one grid for all its data inputs and its output.
5. formulas: every integer and dequantized operation names a formula or needs none.
6. bias: int32, zero point 0, scale exactly ``f32(scale_in * scale_weight)``.
7. weights: symmetric; per channel only along the axis that the output keeps.
8. accumulators: the largest possible absolute sum stays below 2^31.
"""

import numpy as np

from halfstep.errors import ProgramError
from halfstep.program.bounds import WEIGHTED, accumulator_bounds, weight_axis
from halfstep.core.execution import Execution
from halfstep.program.ir import IntProgram, Op

_CODES = (Execution.INTEGER, Execution.DEQUANTIZED, Execution.COPY)
_WITHOUT_FORMULA = ("max_pool", "lookup")


def check(program: IntProgram) -> IntProgram:
    """Return ``program`` if it keeps every rule.

    Raises:
        ProgramError: naming the operation, the rule and what was found.
    """
    known = set(program.inputs) | {n for n, t in program.tensors.items() if t.data is not None}
    for op in program.ops:
        missing = [name for name in op.inputs if name not in known]
        _require(not missing, op, "order", f"reads {missing} before they exist")
        _require(op.output not in known, op, "order", f"makes {op.output} a second time")
        known.add(op.output)
        _check_worlds(program, op)
        _check_codes(program, op)
        if op.execution in _CODES:
            _check_integer(program, op)
    absent = [name for name in program.outputs if name not in known]
    if absent:
        raise ProgramError(f"program outputs {absent} are never made")
    return program


def _require(holds: bool, op: Op, rule: str, found: str) -> None:
    if not holds:
        raise ProgramError(f"{op.output}: {op.kind} breaks the rule '{rule}': {found}")


def _check_worlds(program: IntProgram, op: Op) -> None:
    codes_in = [program.tensor(name).grid is not None for name in op.inputs]
    codes_out = program.tensor(op.output).grid is not None
    if op.execution is Execution.EDGE:
        found = f"{op.kind} from {'codes' if codes_in[0] else 'real'}"
        _require(op.kind in ("quantize", "dequantize"), op, "worlds", found)
        _require(codes_in[0] != codes_out and codes_out == (op.kind == "quantize"), op, "worlds", found)
    elif op.execution is Execution.FLOAT:
        _require(not any(codes_in) and not codes_out, op, "worlds", "a float op with codes")
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
    if op.clamp is not None:
        qtype = program.grid(op.output).qtype
        inside = qtype.qmin <= op.clamp[0] <= op.clamp[1] <= qtype.qmax
        _require(inside, op, "codes", f"clamp {op.clamp} does not fit {qtype}")


def _check_integer(program: IntProgram, op: Op) -> None:
    if op.execution is Execution.COPY:
        out = program.grid(op.output)
        grids = [program.tensor(name).grid for name in op.inputs]
        same = all(grid is None or grid.same_as(out) for grid in grids)
        _require(same, op, "copies", f"grids {[str(g) for g in grids]} and {out}")
        return
    named = op.formula is not None or op.kind in _WITHOUT_FORMULA
    _require(named, op, "formulas", "no requantization formula")
    if op.kind in WEIGHTED:
        _check_weighted(program, op)


def _check_weighted(program: IntProgram, op: Op) -> None:
    weight = program.grid(op.inputs[1])
    _require(not np.any(weight.zero_point), op, "weights", "weights with a zero point")
    wanted = weight_axis(op)
    _require(
        weight.axis in (None, wanted), op, "weights", f"axis {weight.axis}, not None or {wanted}"
    )
    if len(op.inputs) > 2:
        bias, scale = program.grid(op.inputs[2]), program.grid(op.inputs[0]).scale * weight.scale
        exact = bias.qtype.bits == 32 and np.array_equal(bias.scale, scale)
        _require(exact, op, "bias", f"bias is {bias}, not int32 on scale_in * scale_weight")
    largest = int(accumulator_bounds(program, op).max())
    found = f"accumulators may reach {largest} in channel {accumulator_bounds(program, op).argmax()}"
    _require(largest < 2**31, op, "accumulators", found)
