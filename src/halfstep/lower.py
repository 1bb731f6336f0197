"""From a calibrated graph to the integer program of its target: the one bridge between the two.

Each unit of the graph becomes one operation, with the formula of the target's rule; values on
grids become tensors of codes; where a float operation meets codes, a quantize or a dequantize
stands between them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.target import Target
from halfstep.errors import LowerError
from halfstep.functions import TABLES
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit, see_through
from halfstep.graph.placement import QUANTIZED, is_weighted
from halfstep.graph.readers import shape_of
from halfstep.graph.scales import scale_refusal
from halfstep.program.check import check
from halfstep.program.ir import IntProgram, Op, Tensor
from halfstep.program.kernels import KERNELS
from halfstep.quant.bias import bias_codes, bias_grid


def lower(model: QuantizedModel) -> IntProgram:
    """The integer program that the plan's target will run; checked against its specification.

    Args:
        model: prepared and calibrated.

    Raises:
        CalibrationError: a site has no range yet.
        LowerError: an operation that no target can run, in a place that stays float.
        ProgramError: an accumulator, or on some targets a sum of two products, may overflow; the
            message names the channels.
    """
    return check(draft(model))


def draft(model: QuantizedModel) -> IntProgram:
    """The program as it would be, which may still break the specification."""
    return _Lowering(model).program()


def clamp_codes(grid: Affine, limits: tuple[float | None, float | None]) -> tuple[int, int] | None:
    """The codes of a fused activation's bounds; ``None`` if the grid itself bounds as tightly."""
    low, high = grid.qtype.qmin, grid.qtype.qmax
    ends = [low, high]
    for side, limit in enumerate(limits):
        if limit is not None:
            ends[side] = int(grid.quantize(np.asarray(limit, np.float32)))
    return None if (ends[0], ends[1]) == (low, high) else (ends[0], ends[1])


class _Lowering:
    """The state of one ``lower``: the tensors and operations made so far."""

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self.sites = model.units.sites
        self.target: Target = find("target", model.plan.target)
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.graph = model.graph.module.graph

    def program(self) -> IntProgram:
        inputs = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                inputs.append(self._real_tensor(node, node.name))
                if self.sites[node] in self.model.site_quantizer:
                    self._quantize(node, node.name, self.sites[node], "")
        self._refuse_unknown()
        for unit in self.model.units.units:
            self._unit(unit)
        return IntProgram(
            self.target.name,
            tuple(inputs),
            self._outputs(),
            self.tensors,
            tuple(self.ops),
            self.target.accumulator_bits,
            self.target.pair_sum_bits,
        )

    def _refuse_unknown(self) -> None:
        """Name every operation that no program can hold, not even in float."""
        executions = self.model.plan.executions
        unknown = [
            unit
            for unit in self.model.units.units
            if executions[unit.name] is Execution.FLOAT
            and (Execution.FLOAT, unit.kind) not in KERNELS
        ]
        if unknown:
            first, *others = unknown
            names = ", ".join(unit.name for unit in others)
            raise LowerError(
                f"{first.name}: {first.kind} is not in the op table and has no place in a program"
                f"{f'; nor have {names}' if names else ''}. "
                "Replace it in the model, or capture a part without it: capture(..., only=...)."
            )

    def _outputs(self) -> tuple[str, ...]:
        node = next(node for node in self.graph.nodes if node.op == "output")
        values = [see_through(value) for value in node.args[0]]
        names = ["output"] if len(values) == 1 else [f"output_{i}" for i in range(len(values))]
        for value, name in zip(values, names, strict=True):
            if self._has_codes(value):
                self._dequantize(value, name)
            else:
                source = self._real(value)
                self.tensors[name] = Tensor(name, shape_of(value), dtype=_dtype(value))
                self.ops.append(
                    Op("reshape", (source,), name, Execution.FLOAT, {"shape": shape_of(value)})
                )
        return tuple(names)

    # Values ------------------------------------------------------------------------------------

    def _has_codes(self, node: fx.Node) -> bool:
        return self.sites[node] in self.model.site_quantizer

    def _grid(self, node: fx.Node) -> Affine:
        return self.model.quantizer(self.sites[node]).grid()

    def _real_tensor(self, node: fx.Node, name: str) -> str:
        self.tensors[name] = Tensor(name, shape_of(node), dtype=_dtype(node))
        return name

    def _codes(self, node: fx.Node) -> str:
        """The tensor of codes of a value; constants are quantized here."""
        site = self.sites[node]
        if site not in self.tensors and node.op == "get_attr":
            grid = self._grid(node)
            self.tensors[site] = Tensor(
                site, shape_of(node), grid, data=grid.quantize(self._value(node))
            )
        return site

    def _real(self, node: fx.Node) -> str:
        """The tensor of real values of a value, dequantized if it has codes."""
        if node.op == "placeholder" and not self._has_codes(node):
            return node.name
        name = f"{self.sites[node]}:real"
        if name in self.tensors:
            return name
        if self._has_codes(node):
            self._codes(node)
            self._dequantize(node, name)
        elif node.op == "get_attr":
            value = self._value(node)
            self.tensors[name] = Tensor(name, shape_of(node), dtype=value.dtype.name, data=value)
        return name

    def _value(self, node: fx.Node) -> NDArray[Any]:
        return self.model.parameter_of(node).detach().cpu().numpy()

    def _quantize(self, node: fx.Node, real: str, site: str, module: str) -> None:
        self.tensors[site] = Tensor(site, shape_of(node), self._grid(node))
        formula = self.target.quantize_formula
        self.ops.append(Op("quantize", (real,), site, Execution.EDGE, {}, formula, module=module))

    def _dequantize(self, node: fx.Node, name: str) -> None:
        self._real_tensor(node, name)
        self.ops.append(Op("dequantize", (self.sites[node],), name, Execution.EDGE))

    # Units -------------------------------------------------------------------------------------

    def _unit(self, unit: Unit) -> None:
        execution = self.model.plan.executions[unit.name]
        if execution is Execution.COPY and not self._has_codes(unit.tail):
            execution = Execution.FLOAT
        if execution is Execution.FLOAT:
            self._float_unit(unit)
        elif execution is Execution.SCALED:
            self._scaled_unit(unit)
        else:
            self._integer_unit(unit, execution)

    def _integer_unit(self, unit: Unit, execution: Execution) -> None:
        rule = self.target.rules[unit.kind]
        grid = self._grid(unit.tail)
        reads_codes = [self._has_codes(node) for node in unit.inputs]
        inputs = [
            self._codes(node) if codes else self._real(node)
            for node, codes in zip(unit.inputs, reads_codes, strict=True)
        ]
        self._refuse_scales(unit)
        kind, attrs = unit.kind, dict(unit.attrs)
        if kind == "add" and shape_of(unit.inputs[0]) != shape_of(unit.tail):
            # The order decides rounding, and a runtime may put a repeated operand second.
            inputs.reverse()
        if is_weighted(unit, self.model.plan.executions):
            inputs += self._weight_and_bias(unit)
        if execution in QUANTIZED and kind in TABLES:
            kind, attrs = "lookup", {"function": unit.kind, **attrs}
            inputs.append(self._table(unit, grid))
        self.tensors[unit.out] = Tensor(unit.out, shape_of(unit.tail), grid)
        self.ops.append(
            Op(
                kind,
                tuple(inputs),
                unit.out,
                execution,
                attrs,
                rule.formula_on([self.tensors[name].grid for name in inputs]),
                clamp_codes(grid, unit.limits),
                unit.name,
                unit.macs,
                rule.reason,
            )
        )

    def _refuse_scales(self, unit: Unit) -> None:
        refusal = scale_refusal(self.model, unit)
        if refusal:
            raise LowerError(
                f"{unit.out}: {unit.kind}: {refusal}. Run halfstep.repair_scales(model) behind all "
                f"that sets ranges, or keep it in float with plan.keep_float({unit.name!r})"
            )

    def _scaled_unit(self, unit: Unit) -> None:
        inputs = [self._codes(node) for node in unit.inputs]
        if unit.weight is not None:
            inputs += self._weight_and_bias(unit)
        formula = self.target.rules[unit.kind].scaled
        self._real_result(unit, inputs, Execution.SCALED, formula)

    def _weight_and_bias(self, unit: Unit) -> list[str]:
        assert unit.weight is not None
        site = self.sites[unit.weight]
        grid = self.model.quantizer(site).grid()
        if site not in self.tensors:
            codes = grid.quantize(self._value(unit.weight))
            self.tensors[site] = Tensor(site, shape_of(unit.weight), grid, data=codes)
        if unit.bias is None:
            return [site]
        name = f"{unit.name}:bias"
        bias = self._value(unit.bias)
        qtype = self.model.bias_type(unit)
        on = bias_grid(self._grid(unit.inputs[0]), grid, bias.size, qtype)
        codes = bias_codes(bias, on)
        self.tensors[name] = Tensor(name, shape_of(unit.bias), on, data=codes)
        return [site, name]

    def _table(self, unit: Unit, grid: Affine) -> str:
        """For every input code the output code."""
        name = f"{unit.name}:table"
        source = self._grid(unit.inputs[0])
        codes = np.arange(source.qtype.qmin, source.qtype.qmax + 1)
        kernel = self.target.rules[unit.kind].table
        if kernel is None:
            table = grid.quantize(TABLES[unit.kind](source.dequantize(codes), **unit.attrs))
        else:
            found = kernel(codes, source, grid, **unit.attrs)
            table = np.clip(found, grid.qtype.qmin, grid.qtype.qmax).astype(grid.qtype.storage)
        self.tensors[name] = Tensor(name, table.shape, None, table.dtype.name, table)
        return name

    def _float_unit(self, unit: Unit) -> None:
        inputs = [self._real(node) for node in unit.inputs]
        inputs += [self._real(node) for node in (unit.weight, unit.bias) if node is not None]
        name = self._real_result(unit, inputs, Execution.FLOAT)
        if self._has_codes(unit.tail):
            self._quantize(unit.tail, name, unit.out, unit.name)

    def _real_result(
        self, unit: Unit, inputs: list[str], execution: Execution, formula: str | None = None
    ) -> str:
        """The operation of a unit that gives real values, and its activation."""
        reason = self.model.plan.floats.get(unit.name, "")
        clamped = any(limit is not None for limit in unit.limits)
        name = f"{unit.name}:unclamped" if clamped else f"{unit.out}:real"
        last = unit.head if clamped else unit.tail
        self._real_tensor(last, name)
        op = Op(unit.kind, tuple(inputs), name, execution, unit.attrs, formula, None, unit.name)
        self.ops.append(Op(**{**vars(op), "macs": unit.macs, "reason": reason}))
        return self._clamp(unit, name, reason) if clamped else name

    def _clamp(self, unit: Unit, name: str, reason: str) -> str:
        low, high = unit.limits
        out = self._real_tensor(unit.tail, f"{unit.out}:real")
        attrs = {"low": low, "high": high}
        self.ops.append(
            Op("clamp", (name,), out, Execution.FLOAT, attrs, None, None, unit.name, 0, reason)
        )
        return out


def _dtype(node: fx.Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")
