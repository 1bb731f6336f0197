"""Networks on which a target once did otherwise than the engine, as small as they got."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import halfstep as hs
from halfstep.catalog import find
from halfstep.core.execution import Execution
from halfstep.core.target import OpFacts
from tests.fuzz.networks import Network, Step
from tests.fuzz.trial import attempt, captured, samples

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.runtime
LITERT = ("litert_ref", "litert_xnnpack")


def activation(function: str, seed: int) -> Network:
    step = Step("activation", (0,), {"function": function})
    return Network(((3, 4, 4),), (step,), grids="ratios", seed=seed)


@pytest.mark.parametrize("seed", [0, 9], ids=["finer", "coarser"])
@pytest.mark.parametrize("target", LITERT)
def test_a_hardswish_between_far_scales_is_looked_up(target: str, seed: int) -> None:
    """LiteRT refused the file ("output_multiplier_exponent <= 0"), or was off by one everywhere."""
    assert attempt(activation("hardswish", seed), target).status == "exact"


# The ratio at which each rule begins to refuse. Files at it and just below it were opened and run:
# LiteRT's reference addition ends the process, XNNPACK does not open a linear layer, and ONNX
# Runtime's average fails in a run. XNNPACK leaves the additions and products to other kernels.
LIMITS = [
    ("litert_ref", "add", (1.0, 0.5), 2.0**19),
    ("litert_ref", "sub", (0.5, 1.0), 2.0**19),
    ("litert_xnnpack", "linear", (1.0, 1.0), 2.0**8),
    ("litert_xnnpack", "add", (1.0, 0.5), 2.0**8),
    ("litert_xnnpack", "mul", (1.0, 1.0), 2.0**8),
    ("openvino", "mul", (1.0, 1.0), 2.0**7),
    ("openvino", "add", (1.0, 0.5), 2.0**15),
    ("openvino", "clamp", (1.0,), 2.0**15),
    ("onnxruntime", "global_avg_pool", (16.0,), 2.0**8),
]


@pytest.mark.parametrize(("target", "kind", "scales", "limit"), LIMITS)
def test_scales_are_refused_from_the_limit_on(
    target: str, kind: str, scales: tuple[float, ...], limit: float
) -> None:
    rule = find("target", target).rules[kind]
    facts = OpFacts(kind, {}, ((-1, 3, 4, 4),), (False,))
    below = float(np.nextafter(np.float32(1 / limit), np.float32(1)))
    assert rule.refuses_scales(facts, scales, 1 / limit)
    assert not rule.refuses_scales(facts, scales, below)


def assert_repaired(networks: list[Network], target: str) -> list[str]:
    """All are exact, and some would be refused by name without the repair, in the words given."""
    assert {attempt(network, target).status for network in networks} == {"exact"}
    with patch("tests.fuzz.trial.hs.repair_scales"):
        found = [attempt(network, target) for network in networks]
    assert {outcome.status for outcome in found} == {"exact", "refused"}
    return [outcome.found for outcome in found if outcome.status == "refused"]


@pytest.mark.parametrize(
    ("kind", "target", "options"),
    [
        ("linear", "litert_xnnpack", {"out_features": 5, "bias": True}),
        ("global_pool", "onnxruntime", {}),
    ],
)
def test_multipliers_that_a_runtime_does_not_take_are_repaired(
    kind: str, target: str, options: dict[str, Any]
) -> None:
    """XNNPACK did not open the file; ONNX Runtime opened it, and ended with an error in a run."""
    network = Network(((3, 4, 4),), (Step(kind, (0,), options),), grids="ratios")
    assert_repaired([replace(network, seed=seed) for seed in range(12)], target)


@pytest.mark.parametrize("op", ["add", "sub"])
def test_scales_that_xnnpack_does_not_take_are_repaired(op: str) -> None:
    """Kernels of LiteRT ran that compute by none of the formulas."""
    network = Network(((3,), (3,)), (Step("binary", (0, 1), {"op": op}),), grids="ratios")
    found = assert_repaired([replace(network, seed=seed) for seed in range(4)], "litert_xnnpack")
    for words in found:
        assert words.startswith(f"LowerError: steps.0.{op}:out: {op}: ")
        assert "XNNPACK takes" in words
        assert f"plan.keep_float('steps.0.{op}')" in words


def test_products_whose_digits_openvino_cancels_are_repaired() -> None:
    """Codes were up to 7 away where the product of the scales was 2,400 times the output's."""
    network = Network(
        ((3, 4, 4), (3, 4, 4)), (Step("binary", (0, 1), {"op": "mul"}),), grids="ratios"
    )
    found = assert_repaired([replace(network, seed=seed) for seed in range(12)], "openvino")
    assert all(
        "OpenVINO has not the digits for it. Run halfstep.repair_scales" in words for words in found
    )


TRANSPOSED = {
    "out_channels": 2,
    "kernel_size": (2, 2),
    "stride": (1, 3),
    "dilation": (2, 1),
    "groups": 1,
    "bias": True,
}


@pytest.mark.parametrize(
    ("padding", "output_padding", "status"),
    [((1, 0), (1, 0), "exact"), ((0, 1), (0, 2), "exact"), ((0, 0), (1, 0), "refused")],
)
def test_rows_that_a_transposed_convolution_adds_beyond_its_stride(
    padding: tuple[int, int], output_padding: tuple[int, int], status: str
) -> None:
    """ONNX Runtime opened the file, and ended with an error in a run."""
    options = {**TRANSPOSED, "padding": padding, "output_padding": output_padding}
    steps = (
        Step("conv_transpose", (0,), options),
        Step("activation", (1,), {"function": "sigmoid"}),
    )
    outcome = attempt(Network(((2, 4, 3),), steps), "onnxruntime")
    assert outcome.status == status
    assert status == "exact" or "steps.0:out:real: a transposed convolution" in outcome.found


def test_a_product_whose_multiplier_shifts_it_out_of_an_int32_is_refused() -> None:
    """LiteRT wrapped around where the engine saturated: 255 codes apart."""
    steps = (Step("binary", (0, 0), {"op": "mul"}), Step("matmul", (1, 0), {"scale": 1}))
    options = {"grids": "ratios", "data": "ties", "weight_bits": 3, "activation_bits": 4}
    outcome = attempt(Network(((1, 3, 4, 3),), steps, seed=5806, **options), "litert_ref")
    assert outcome.status == "refused"
    assert "steps.1.matmul:out: matmul breaks the rule 'accumulators'" in outcome.found
    assert "widen the range of the output" in outcome.found


def lowered(graph: hs.Graph, network: Network, *in_float: str) -> hs.IntProgram:
    plan = hs.make_plan(graph, "openvino", calibrator="minmax")
    for name in in_float:
        plan = plan.keep_float(name)
    model = hs.prepare(graph, plan)
    hs.calibrate(model, [network.example(8, 1)])
    return hs.lower(model)


@pytest.mark.parametrize("padding", [((2, 0), (1, 1)), ((0, 2), (0, 0))])
@pytest.mark.parametrize("in_float", [False, True])
def test_openvino_pads_in_front_of_the_stride(padding: Any, in_float: bool, tmp_path: Path) -> None:
    """It moved the stride of a kernel of one value in front of the padding: 3 values for 2."""
    options = {"out_channels": 2, "kernel_size": (1, 1), "stride": (3, 2), "dilation": (1, 1)}
    conv = Step("conv", (1,), {**options, "padding": padding, "groups": 1, "bias": True})
    first = Step("activation", (0,), {"function": "leaky_relu"})
    network = Network(((2, 5, 5),), (first, conv))
    program = lowered(captured(network), network, *(["steps.1*"] if in_float else []))
    hs.export(program, tmp_path / "model.onnx")
    verdict = hs.verify(program, tmp_path / "model.onnx", samples(network, program))
    assert verdict.status is not hs.Status.FAILED
    assert max(site.largest for site in verdict.sites) == 0


@pytest.mark.parametrize("length", [1, 2, 5])
def test_openvino_pads_whole_windows_apart(length: int) -> None:
    """The process ended where one or two values were padded by 1 and 2 for a kernel of one."""
    options = {"out_channels": 1, "kernel_size": (1,), "stride": (1,), "dilation": (1,)}
    conv = Step("conv", (0,), {**options, "padding": ((1, 2),), "groups": 1, "bias": True})
    assert attempt(Network(((2, length),), (conv,)), "openvino").status == "exact"


@pytest.mark.parametrize("codes", [False, True])
def test_openvino_is_given_circular_padding_as_places(codes: bool) -> None:
    """It reads no padding of this mode."""
    pad = Step("pad", (0,), {"sizes": (2, 1, 1, 0), "mode": "circular", "value": None})
    after = Step("activation", (1,), {"function": "relu"})
    steps = (pad, after) if codes else (pad,)
    assert attempt(Network(((2, 5, 4),), steps), "openvino").status in ("exact", "floats")


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize(
    "reduction",
    [
        Step("global_pool", (1,), {}),
        Step("reduce", (1,), {"op": "mean", "axes": (1,), "keepdim": False}),
        Step("reduce", (1,), {"op": "mean", "axes": (1, 2), "keepdim": True}),
        Step("reduce", (1,), {"op": "sum", "axes": (2,), "keepdim": True}),
    ],
    ids=["pool", "mean of one", "mean of all", "sum"],
)
def test_openvino_reduces_sequences_rightly_behind_the_first_values(
    reduction: Step, batch: int, tmp_path: Path
) -> None:
    """With anything fused behind it, results from the seventeenth byte on were others."""
    function = Step("activation", (0,), {"function": "leaky_relu"})
    again = Step("activation", (2,), {"function": "leaky_relu"})
    network = Network(((5, 8),), (function, reduction, again))
    program = lowered(captured(network), network)
    hs.export(program, tmp_path / "model.onnx")
    verdict = hs.verify(program, tmp_path / "model.onnx", [network.example(batch, 5)])
    assert max(site.largest for site in verdict.sites) <= 1


def test_an_average_over_padding_that_stays_float_is_float_in_openvino() -> None:
    """It was taken for one of codes, whose zero point is not subtracted: 63 codes away."""
    function = Step("activation", (0,), {"function": "leaky_relu"})
    windows = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False}
    pool = Step("avg_pool", (1,), {**windows, "count_include_pad": True, "divisor_override": None})
    again = Step("activation", (2,), {"function": "leaky_relu"})
    outcome = attempt(Network(((2, 5, 5),), (function, pool, again)), "openvino")
    assert outcome.status == "exact" and "(largest distance 0): steps.1:out" in outcome.found


@pytest.mark.parametrize("target", LITERT)
def test_a_value_that_is_reshaped_twice_is_still_there_for_its_other_readers(target: str) -> None:
    """LiteRT gave its memory away behind the second reshape: 144 codes away, unless looked at."""
    windows = {"kernel_size": (1,), "stride": (1,), "padding": (0,), "ceil_mode": True}
    steps = (
        Step("avg_pool", (1,), {**windows, "count_include_pad": True}),
        Step("softmax", (2,), {"axis": 2}),
        Step("binary", (0, 3), {"op": "sub"}),
    )
    network = Network(((1, 5), (1, 5)), steps, also=2, parameters="constant", seed=65535)
    assert attempt(network, target).status == "exact"


def test_a_window_that_fits_into_the_padding_of_a_maximum() -> None:
    """Rounding up the size leaves padding as wide as the kernel, which ONNX Runtime refuses."""
    windows = {"kernel_size": (2,), "stride": (3,), "padding": (1,), "ceil_mode": True}
    pool = Step("max_pool", (1,), {**windows, "dilation": (2,)})
    linear = Step("linear", (0,), {"out_features": 3, "bias": True})
    for steps in ((linear, pool), (Step("activation", (0,), {"function": "sigmoid"}), pool)):
        for target in ("onnxruntime", "openvino"):
            assert attempt(Network(((7, 3),), steps), target).status in ("exact", "floats")


# Of one input: its shape, and a convolution's outputs, groups, kernel, stride and padding.
ALONE = [
    ((3, 4), 9, 3, (2,), (3,), ((0, 0),)),
    ((3, 4), 9, 3, (2,), (3,), ((1, 2),)),
    ((3, 8), 9, 3, (2,), (3,), ((1, 1),)),
    ((2, 5), 4, 2, (3,), (1,), ((0, 0),)),
    ((2, 4, 5), 4, 2, (3, 1), (3, 1), ((0, 0), (0, 0))),
    ((2, 4, 1), 4, 2, (3, 1), (3, 1), ((0, 0), (2, 2))),
    ((4, 4, 5), 8, 4, (1, 3), (1, 3), ((0, 0), (0, 0))),
    ((1, 4, 5), 16, 1, (1, 3), (1, 3), ((0, 0), (0, 0))),
    ((1, 9, 3), 8, 1, (1, 3), (1, 3), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("shape", "outputs", "groups", "kernel", "stride", "padding"), ALONE)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_openvino_makes_outputs_of_a_channel_each_from_its_own(
    shape: tuple[int, ...],
    outputs: int,
    groups: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Any,
    batch: int,
    tmp_path: Path,
) -> None:
    """For small inputs and batches codes were up to 231 away."""
    options = {"out_channels": outputs, "kernel_size": kernel, "stride": stride, "groups": groups}
    options |= {"dilation": (1,) * len(kernel), "padding": padding, "bias": True}
    network = Network((shape,), (Step("conv", (0,), options),))
    program = lowered(captured(network), network)
    hs.export(program, tmp_path / "model.onnx")
    verdict = hs.verify(program, tmp_path / "model.onnx", [network.example(batch, 5)])
    assert max(site.largest for site in verdict.sites) <= 1


@pytest.mark.parametrize("target", LITERT)
def test_scores_of_a_softmax_in_steps_that_litert_does_not_take_are_repaired(target: str) -> None:
    """It ended the process at a scale of 2^-26."""
    rule = find("target", target).rules["softmax"]
    facts = OpFacts("softmax", {"axis": 1}, ((-1, 5),), (False,))
    assert rule.refuses_scales(facts, [2.0**-26], 1 / 256)
    assert not rule.refuses_scales(facts, [2.0**-25], 1 / 256)
    steps = (
        Step("linear", (0,), {"out_features": 5, "bias": False}),
        Step("softmax", (1,), {"axis": 1}),
    )
    assert attempt(Network(((5,),), steps, parameters="dead"), target).status == "exact"


@pytest.mark.parametrize("function", ["hardtanh", "clamp"], ids=["two ends", "one end"])
def test_openvino_clamps_between_the_codes_of_its_input(function: str) -> None:
    """It clamped codes, at the nearest ones to the bounds: 2 codes of the output away."""
    clamp = Step("activation", (0,), {"function": function})
    for seed in range(8):
        network = Network(((5, 7),), (clamp,), data="extreme", seed=seed)
        for grids in ("ends", "ratios"):
            found = attempt(replace(network, grids=grids), "openvino")
            assert found.status in ("exact", "bounded")


WINDOWS = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True}
IN_FLOAT = {
    "clamp": Step("activation", (1,), {"function": "hardtanh"}),
    "minimum": Step("activation", (1,), {"function": "clamp"}),
    "pad": Step("pad", (1,), {"sizes": (1, 2, 0, 1), "mode": "constant", "value": 1.0}),
    "max_pool": Step("max_pool", (1,), {**WINDOWS, "dilation": (1, 1)}),
    "conv": Step("conv", (1,), {
        "out_channels": 2, "kernel_size": (1, 1), "stride": (3, 2), "dilation": (1, 1),
        "padding": ((2, 0), (1, 1)), "groups": 1, "bias": True,
    }),
    "conv of each channel": Step("conv", (1,), {
        "out_channels": 4, "kernel_size": (3, 1), "stride": (3, 1), "dilation": (1, 1),
        "padding": ((0, 0), (0, 0)), "groups": 2, "bias": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("step", IN_FLOAT.values(), ids=IN_FLOAT)
def test_openvino_does_in_float_what_is_to_be_done_in_float(step: Step, tmp_path: Path) -> None:
    """On codes that another operation reads as well."""
    first = Step("activation", (0,), {"function": "leaky_relu"})
    again = Step("activation", (1,), {"function": "sigmoid"})
    network = Network(((2, 5, 5),), (first, step, again), also=2)
    program = lowered(captured(network), network, "steps.1*")
    assert any(op.execution is Execution.FLOAT and op.kind != "reshape" for op in program.ops)
    hs.export(program, tmp_path / "model.onnx")
    verdict = hs.verify(program, tmp_path / "model.onnx", samples(network, program))
    assert verdict.status is not hs.Status.FAILED
    floats = [site for site in verdict.sites if site.site.startswith("output_0")]
    assert floats and max(site.largest for site in floats) < 1e-5


def test_openvino_multiplies_each_channel_by_its_own_constant() -> None:
    """It took that of the first for all, behind a clamp: 207 codes away."""
    steps = (
        Step("embedding", (0,), {"rows": 7, "columns": 4}),
        Step("activation", (1,), {"function": "relu6"}),
        Step("batch_norm", (2,), {}),
        Step("upsample", (3,), {"factor": 2, "mode": "nearest"}),
        Step("linear", (3,), {"out_features": 6, "bias": False}),
        Step("reduce", (4,), {"op": "sum", "axes": (1, 2), "keepdim": True}),
    )
    options = {"also": 2, "parameters": "normal", "grids": "found", "seed": 543}
    outcome = attempt(Network((("words", 7, 4),), steps, **options), "openvino")
    assert outcome.status == "exact"


def test_openvino_pads_real_values_that_are_read_as_codes_elsewhere() -> None:
    """It padded the zero point that the other reader takes off as well, and refused the file."""
    pad = Step("pad", (1,), {"sizes": (1, 2, 0, 0), "mode": "constant", "value": 1.0})
    steps = (Step("split", (0,), {"sizes": (1, 1)}), pad, Step("batch_norm", (1,), {}))
    network = Network(((1, 5),), steps, also=2, grids="ties", data="constant", seed=184)
    assert attempt(network, "openvino").status in ("exact", "bounded")


@pytest.mark.parametrize("target", LITERT)
def test_a_reshaped_value_is_not_written_over_before_all_have_read_it(target: str) -> None:
    """LiteRT let a softmax overwrite what the addition in front had made for others as well."""
    steps = (
        Step("scalar", (1,), {"op": "sub", "value": 0.001}),
        Step("softmax", (2,), {"axis": 3}),
        Step("activation", (3,), {"function": "hardswish"}),
    )
    network = Network(((4, 2, 2, 1), (4, 2, 2, 1)), steps, also=2, grids="ratios", seed=365)
    assert attempt(network, target).status == "exact"


def test_products_that_xnnpack_wraps_around_are_repaired() -> None:
    """A sum of -2^31 steps and less, with a zero point below 0, became the highest code."""
    network = Network(
        ((3, 1, 2, 4),),
        (Step("matmul", (0, 0), {"scale": 0.3}),),
        **{"parameters": "constant", "grids": "ratios", "data": "extreme"},
        **{"weight_bits": 6, "activation_bits": 6},
    )
    found = assert_repaired([replace(network, seed=seed) for seed in range(8)], "litert_xnnpack")
    assert all("products may be" in words and "XNNPACK wraps around" in words for words in found)


@pytest.mark.parametrize("steps", [2.0**31 - 2**9, 2.0**31])
def test_sums_are_refused_that_do_not_fit_an_int32(steps: float) -> None:
    for kind, terms in (("linear", 4608), ("matmul", 7)):
        rule = find("target", "litert_xnnpack").rules[kind]
        facts = OpFacts(kind, {}, ((-1, 5),), (False,), terms)
        refusal = rule.refuses_scales(facts, (1.0, 1.0), terms * 255 * 128 / steps)
        assert bool(refusal) == (steps == 2.0**31)
