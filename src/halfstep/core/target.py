"""A target as a table: which operations it runs how, on which types, by which formulas."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.qtype import ACCUMULATOR_BITS, INT32, PAIR_SUM_BITS, QType
from halfstep.core.spec import QuantSpec
from halfstep.errors import PlanError


@dataclass(frozen=True)
class OpFacts:
    """What a rule may look at when it accepts or refuses one operation.

    Attributes:
        kind: its name in the op table.
        attrs: its attributes.
        shapes: the shapes of its inputs, ``BATCH`` where a size depends on the batch.
        constants: for each input, whether it is a constant.
        terms: how many products each of its sums has; 0 if it is no sum of products.
    """

    kind: str
    attrs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[bool, ...]
    terms: int = 0


def always(facts: OpFacts) -> str:
    """Accept every operation."""
    del facts
    return ""


def any_activation(spec: QuantSpec) -> str:
    """Accept every activation."""
    del spec
    return ""


def any_scales(facts: OpFacts, operands: Sequence[float], output: float) -> str:
    """Accept all scales."""
    del facts, operands, output
    return ""


@dataclass(frozen=True)
class OpRule:
    """How a target runs one kind of operation.

    Attributes:
        execution: how it runs, if ``refuses`` finds nothing against it.
        formula: the name of the requantization formula, in the kernel's table.
        reason: why it is not on an integer kernel; empty if it is.
        refuses: returns the reason why an operation of this kind must stay float, or "".
        output_calibrator: the calibrator that the kernel's output needs, whatever the plan asks
            for; ``None`` leaves it to the plan.
        scaled: the formula by which the kernel can leave real values instead of codes; ``None`` if
            it cannot.
        one_grid: whether the kernel needs one grid for input and output, as copies do.
        table: for a function of one code, what the kernel computes: ``(codes, grid of the input,
            grid of the output, **attributes)`` to unbounded codes; ``None`` if that is the
            float32 function, quantized.
        refuses_scales: given the scales of the inputs, with the largest of the weight behind them,
            and that of the output, the reason why the kernel does not take them, or "". They are
            known when the program is made, not when it is planned.
        symmetric_formula: the formula of a better kernel, for which plans give the second input
            zero point 0 where they can; ``None`` if there is none.
    """

    execution: Execution
    formula: str | None = None
    reason: str = ""
    refuses: Callable[[OpFacts], str] = always
    output_calibrator: str | None = None
    scaled: str | None = None
    one_grid: bool = False
    table: Callable[..., Any] | None = None
    refuses_scales: Callable[[OpFacts, Sequence[float], float], str] = any_scales
    symmetric_formula: str | None = None

    def formula_on(self, inputs: Sequence[Affine | None]) -> str | None:
        """The name of the formula for inputs on these grids."""
        if self.symmetric_formula is None or inputs[1] is None or np.any(inputs[1].zero_point):
            return self.formula
        return self.symmetric_formula


@dataclass(frozen=True)
class Target:
    """One way to run a quantized model.

    Attributes:
        name: as users write it.
        title: one line for listings.
        rules: by kind of operation; a kind that is not here stays float.
        activation: the type of activations, unless a plan says otherwise.
        weight: the type of weights, unless a plan says otherwise.
        activation_bits: fewest and most bits of an activation.
        weight_bits: fewest and most bits of a weight.
        accumulator_bits: bits of the sums of products, which must not overflow.
        pair_sum_bits: 16 where some CPU of the target adds two neighbouring products in int16,
            which saturates; ``None`` where products go straight to the accumulator.
        weight_groups: whether weights may have a scale for each group of inputs.
        symmetric_activations: activations are signed and have zero point 0.
        refuses_activation: returns the reason why no activation may have a spec, or "".
        quantize_formula: how the runtime quantizes real inputs.
        bound: the largest distance, in codes, that an operation on equal inputs may be away; 0
            promises equality.
        integer_only: float operations are refused by name.
        artifact: the file or folder that it reads, such as ``"model.onnx"``; ``None`` for the
            engine alone.
        export: ``"module:function"`` that writes the artifact from a program.
        run: ``"module:function"`` that opens the artifact for running.
        in_memory: ``"module:function"`` that says, for a program, how the artifact holds the codes
            of each site; ``None`` if nothing but the program's own order is known.
    """

    name: str
    title: str
    rules: Mapping[str, OpRule]
    activation: QType
    weight: QType
    activation_bits: tuple[int, int]
    weight_bits: tuple[int, int]
    accumulator_bits: int = 32
    pair_sum_bits: int | None = None
    weight_groups: bool = False
    symmetric_activations: bool = False
    refuses_activation: Callable[[QuantSpec], str] = any_activation
    quantize_formula: str = "division"
    bound: int = 0
    integer_only: bool = False
    artifact: str | None = None
    export: str | None = None
    run: str | None = None
    in_memory: str | None = None
    fused_activations: frozenset[str] = field(default_factory=lambda: frozenset({"relu", "clamp"}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", MappingProxyType(dict(self.rules)))
        if self.accumulator_bits not in ACCUMULATOR_BITS:
            raise PlanError(
                f"target '{self.name}': accumulator_bits={self.accumulator_bits}: an accumulator "
                f"has {ACCUMULATOR_BITS[0]} to {ACCUMULATOR_BITS[-1]} bits"
            )
        if self.pair_sum_bits not in (None, PAIR_SUM_BITS):
            raise PlanError(
                f"target '{self.name}': pair_sum_bits={self.pair_sum_bits}: kernels add pairs of "
                f"products in {PAIR_SUM_BITS} bits, or (None) not at all"
            )

    @property
    def limits_scales(self) -> bool:
        """Whether some kernel does not take all scales."""
        return any(rule.refuses_scales is not any_scales for rule in self.rules.values())

    def bias_type(self, activation: QType, weight: QType) -> QType:
        """The type of a bias: int32, or as wide as the accumulator for more than 8 bits.

        The scale of a bias is the product of the scales that it is added to. With 16-bit operands
        that is up to 2^16 times smaller, and an int32 would clip what is no outlier at all.
        """
        wide = max(activation.bits, weight.bits) > 8
        return QType(self.accumulator_bits) if wide else INT32

    def check_activation(self, site: str, spec: QuantSpec) -> None:
        """Raise ``PlanError`` unless the target runs activations of this spec."""
        low, high = self.activation_bits
        if not low <= spec.qtype.bits <= high or spec.axis is not None:
            raise PlanError(
                f"{site}: asked for {spec}; target '{self.name}' accepts activations of {low} to "
                f"{high} bits, per-tensor. {self._way_out(site, self.activation)}"
            )
        if self.symmetric_activations and not spec.symmetric:
            raise PlanError(
                f"{site}: asked for {spec}; target '{self.name}' accepts activations with zero "
                f"point 0 only. Change the plan with plan.edit({site!r}, symmetric=True, "
                f"qtype={self.activation.name!r})"
            )
        refusal = self.refuses_activation(spec)
        if refusal:
            raise PlanError(
                f"{site}: asked for {spec}; target '{self.name}' refuses it: {refusal}. "
                f"{self._way_out(site, self.activation)}"
            )

    def check_weight(self, site: str, spec: QuantSpec, axis: int) -> None:
        """Raise ``PlanError`` unless the target runs weights of this spec."""
        low, high = self.weight_bits
        if spec.group_size is not None and not self.weight_groups:
            raise PlanError(
                f"{site}: asked for {spec}; target '{self.name}' has no integer kernel with a "
                f"scale for each group of weights. Take one scale a channel with "
                f"plan.edit({site!r}, group_size=None), keep the operation in float with "
                "plan.keep_float(...), or plan for target 'reference'"
            )
        if spec.group_size is not None and axis != 0:
            raise PlanError(
                f"{site}: asked for {spec}; groups divide the inputs of each output channel, and a "
                f"transposed convolution has its output channels on axis {axis}. Take one scale a "
                f"channel with plan.edit({site!r}, group_size=None)"
            )
        fits = low <= spec.qtype.bits <= high and spec.qtype.signed and spec.symmetric
        if not fits or spec.axis not in (None, axis):
            raise PlanError(
                f"{site}: asked for {spec}; target '{self.name}' accepts signed symmetric weights "
                f"of {low} to {high} bits, per-tensor or per-channel (axis {axis}). "
                f"{self._way_out(site, self.weight)}"
            )

    def _way_out(self, site: str, qtype: QType) -> str:
        return (
            f"Change the plan with plan.edit({site!r}, qtype={qtype.name!r}), keep the operation "
            f"in float with plan.keep_float(...), or see what it accepts: halfstep list targets"
        )


def resolve(where: str) -> Any:
    """The object at ``"module:attribute"``, imported now: what opens or writes an artifact."""
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)
