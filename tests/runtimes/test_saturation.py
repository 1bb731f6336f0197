"""Sums of two products in int16, on a CPU that has them: the pairs, the bounds, the repair.

Everything here runs under ``qemu-x86_64 -cpu Haswell`` in one child process, which stands for all
x86 CPUs with AVX2 and without VNNI, and is compared with the engine code by code.
"""

import itertools
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import halfstep as hs
from halfstep.core.execution import Execution
from halfstep.core.qtype import INT8, INT8_NARROW, UINT8
from halfstep.core.requant import ACCUMULATOR
from halfstep.export.onnx_qdq import to_model
from halfstep.lower import draft
from halfstep.program import pairs
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.saturation import prove_sums
from halfstep.runtimes import ort
from halfstep.runtimes.ort import is_proven
from tests.broken import saturation as broken
from tests.encoders import TOKENS, WORDS, Encoder
from tests.models import seeded
from tests.pipeline import normal_inputs
from tests.program.build import N, codes, grid, one_op, weighted
from tests.runtimes.haswell import MISSING, QEMU, Job, Results, run_haswell

Array = NDArray[Any]

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86-64 only"),
    pytest.mark.skipif(QEMU is None, reason=MISSING),
]

GRIDS = {"x_grid": UINT8, "weight_grid": INT8_NARROW}
SIGNED = {"session.qdqisint8allowed": "1"}
EXACT_KERNELS = {"session.x64quantprecision": "1"}


# One operation: two weights a channel, for every two positions of the reduction


def probe(
    inputs: int,
    kernel: tuple[int, ...] | None,
    groups: int = 1,
    multiple: int = 1,
    distance: int | None = None,
    **attrs: Any,
) -> IntProgram:
    """A layer whose channels each have the weights 127 at two positions, and 0 elsewhere.

    Args:
        inputs: of a group.
        kernel: of a convolution; ``None`` for a linear layer.
        groups: of the convolution; one that is depthwise has one channel a group.
        multiple: of which the number of channels is made one, with channels of zeros.
        distance: only positions that are so far apart, of a layer with too many for all.
        **attrs: of the convolution.
    """
    size = inputs * int(np.prod(kernel or ()))
    positions = [
        (first, second)
        for first, second in itertools.combinations(range(size), 2)
        if distance in (None, second - first)
    ]
    channels = -(-len(positions) // multiple) * multiple
    weight = np.zeros((channels, size), np.int8)
    for row, chosen in zip(weight, positions, strict=False):
        row[list(chosen)] = 127
    # The products of two inputs of 255, and what is left of them in int16, have codes far apart.
    ends = {name: grid(1, 0, qtype) for name, qtype in GRIDS.items()} | {"out_grid": grid(324, 1)}
    if kernel is None:
        return weighted("linear", (N, inputs), (N, channels), weight, **ends)
    ones = (1,) * len(kernel)
    attrs = {"stride": ones, "dilation": ones, "padding": ((0, 0),) * len(kernel), **attrs}
    groups = channels if groups == 0 else groups
    sides = tuple(d * (k - 1) + 2 for d, k in zip(attrs["dilation"], kernel, strict=True))
    out = tuple(-(-2 // s) for s in attrs["stride"])
    shapes = (N, inputs * groups, *sides), (N, channels, *out)
    weight = weight.reshape(channels, inputs, *kernel)
    return weighted("conv", *shapes, weight, None, {**attrs, "groups": groups}, **ends)


def activations(a: Any, b: Any) -> IntProgram:
    """A product of two activations."""
    inputs = [codes("x", (N, 6), grid(1, 0, a)), codes("w", (6, 15), grid(1, 0, b))]
    fields = {"attrs": {"alpha": 1.0}, "formula": "float"}
    out = codes("y", (N, 15), grid(324, 1))
    return one_op("matmul", inputs, out, Execution.INTEGER, **fields)


DEPTHWISE = 0
PROBES = {
    "1x1": probe(7, (1, 1)),
    "1x1 for the kernel of many channels": probe(8, (1, 1), multiple=16),
    "3x3 of 3 channels": probe(3, (3, 3)),
    "3x3 of 4 channels": probe(4, (3, 3)),
    "3x3 for the kernel of many channels": probe(4, (3, 3), multiple=16),
    "3x3 of 32 channels": probe(32, (3, 3), multiple=16, distance=9),
    "strided and dilated": probe(5, (2, 3), stride=(2, 1), dilation=(1, 2)),
    "one dimension": probe(3, (3,)),
    "groups": probe(3, (2, 2), groups=2),
    "groups of one channel": probe(1, (3, 3), groups=4),
    "one channel": probe(1, (2, 2)),
    "depthwise": probe(1, (3, 3), DEPTHWISE),
    "depthwise, for the kernel of many channels": probe(1, (3, 3), DEPTHWISE, multiple=16),
    "depthwise, 5x5, dilated": probe(1, (5, 5), DEPTHWISE, dilation=(2, 1)),
    "depthwise in one dimension": probe(1, (5,), DEPTHWISE),
    "linear": probe(9, None),
    "linear of many inputs": probe(20, None),
    "linear of a thousand inputs": probe(1001, None, distance=1),
    "uint8 x int8": activations(UINT8, INT8),
    "uint8 x uint8": activations(UINT8, UINT8),
    "int8 x int8": activations(INT8, INT8),
    "int8 x uint8": activations(INT8, UINT8),
}
BATCHES = (1, 3)


def probe_inputs(program: IntProgram, batch: int) -> dict[str, Array]:
    """The largest codes everywhere; two of them a column in the second of two activations."""
    tensor = program.tensor("x")
    qtype = program.grid("x").qtype
    inputs = {"x": np.full((batch, *tensor.shape[1:]), qtype.qmax, qtype.storage)}
    if "w" in program.inputs:
        qtype = program.grid("w").qtype
        inputs["w"] = np.zeros((6, 15), qtype.storage)
        for column, chosen in enumerate(itertools.combinations(range(6), 2)):
            inputs["w"][list(chosen), column] = qtype.qmax
    return inputs


def probe_job(program: IntProgram) -> Job:
    inputs = [probe_inputs(program, batch) for batch in BATCHES]
    return Job(to_model(program).SerializeToString(), inputs, SIGNED)


# Networks


class Blocks(nn.Module):
    """What MobileNetV2 is made of, small: and grouped, multiplied, one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand = nn.Conv2d(16, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, 1, 1, groups=48)
        self.project = nn.Conv2d(48, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.multiplied = nn.Conv2d(16, 32, 3, groups=16)
        self.row = nn.Conv1d(32, 24, 3)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).clamp(0, 6)
        x = x + self.project(self.depthwise(self.expand(x).clamp(0, 6)).relu())
        x = self.multiplied(self.grouped(x).relu()).relu()
        x = self.row(x.flatten(2)).relu()
        result: Tensor = self.classifier(x.mean(-1))
        return result


def blocks_data(n: int, seed: int) -> tuple[Tensor, ...]:
    return normal_inputs((3, 12, 12))(n, seed)


def sentences(n: int, seed: int) -> tuple[Tensor, ...]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (n, TOKENS), generator=generator)
    return ids, torch.ones(n, TOKENS, dtype=torch.int64)


def before_and_after(module: nn.Module, data: Any, **choices: Any) -> tuple[IntProgram, IntProgram]:
    """The program with the repair switched off, and repaired."""
    graph = hs.capture(module, data(2, 0))
    model = hs.prepare(graph, hs.make_plan(graph, "onnxruntime_any", **choices))
    hs.calibrate(model, [data(8, seed) for seed in (1, 2)])
    before = draft(model)
    hs.repair_pair_sums(model)
    return before, hs.lower(model)


NETWORKS = {
    "blocks": (lambda: seeded(Blocks()), blocks_data, {}),
    "one scale a weight": (lambda: seeded(Blocks()), blocks_data, {"per_channel": False}),
    "encoder": (Encoder, sentences, {}),
}


@pytest.fixture(scope="module")
def programs() -> dict[str, IntProgram]:
    """Each network as it was, with the repair switched off, and repaired."""
    found = {}
    for name, (make, data, choices) in NETWORKS.items():
        before, after = before_and_after(make(), data, **choices)
        found |= {f"{name}, as it was": before, f"{name}, repaired": after}
    return found


def network_inputs(name: str, program: IntProgram) -> list[dict[str, Array]]:
    data = NETWORKS[name.partition(",")[0]][1]
    return [
        dict(zip(program.inputs, (value.numpy() for value in data(n, 9 + n)), strict=True))
        for n in BATCHES
    ]


def exposed(program: IntProgram) -> bytes:
    """The file with every site as an output."""
    model = to_model(program)
    known = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(
        known.get(site) or onnx.ValueInfoProto(name=site) for site in program.sites
    )
    return model.SerializeToString()


@pytest.fixture(scope="module")
def on_haswell(
    programs: dict[str, IntProgram], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Everything, in one emulated process."""
    jobs = {name: probe_job(program) for name, program in PROBES.items()}
    jobs |= {f"worst of {name}": worst_job(program) for name, program in FULL_RANGE.items()}
    for name, program in programs.items():
        inputs, deployed = network_inputs(name, program), to_model(program).SerializeToString()
        jobs[name] = Job(exposed(program), inputs)
        jobs[f"{name}, deployed"] = Job(deployed, inputs)
        if not name.endswith("repaired"):
            jobs[f"{name}, by exact kernels"] = Job(deployed, inputs, EXACT_KERNELS)
    return run_haswell(jobs, tmp_path_factory.mktemp("haswell"))


# Pairs


def channels_that_differ(program: IntProgram, results: list[dict[str, Array]]) -> set[int]:
    """The channels in which Haswell and the engine give other codes."""
    found: set[int] = set()
    for batch, result in zip(BATCHES, results, strict=True):
        inputs = probe_inputs(program, batch)
        mine = Engine(program).run([inputs[name] for name in program.inputs]).outputs[0]
        axis = mine.ndim - 1 if program.ops[0].kind != "conv" else 1
        others = tuple(i for i in range(mine.ndim) if i != axis)
        found |= set(np.flatnonzero((mine != result["y"]).any(axis=others)).tolist())
    return found


def assert_the_prover_names_them(program: IntProgram, results: list[dict[str, Array]]) -> None:
    """Law: the channels that saturate are those that the prover says may."""
    named = {c for op in prove_sums(program, "int16_pairs").unsafe for c in op.unsafe}
    assert channels_that_differ(program, results) == named, "other channels"


WITH_WEIGHTS = [name for name, program in PROBES.items() if program.ops[0].kind != "matmul"]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_two_products_saturate_where_the_prover_says(name: str, on_haswell: Results) -> None:
    assert_the_prover_names_them(PROBES[name], on_haswell[name])
    proof = prove_sums(PROBES[name], "int16_pairs")
    assert proof.safe == name.startswith("depthwise")


@pytest.mark.parametrize("specimen", broken.ORDER_SPECIMENS)
def test_another_order_of_pairs_is_rejected(
    specimen: str, on_haswell: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "in_pairs", broken.ORDER_SPECIMENS[specimen])
    with pytest.raises(AssertionError, match="other channels"):
        for name in WITH_WEIGHTS:
            assert_the_prover_names_them(PROBES[name], on_haswell[name])


def test_products_of_activations_saturate_if_one_is_signed_and_second(on_haswell: Results) -> None:
    for name, program in PROBES.items():
        if program.ops[0].kind != "matmul":
            continue
        differ = channels_that_differ(program, on_haswell[name])
        neighbours = enumerate(itertools.combinations(range(6), 2))
        wanted = {i for i, (a, b) in neighbours if a % 2 == 0 and b == a + 1}
        unsafe = name == "uint8 x int8"
        assert differ == (wanted if unsafe else set()), name
        assert prove_sums(program, "int16_pairs").safe != unsafe, name


# Bounds


def full_range(kind: str, inputs: int, kernel: tuple[int, ...], groups: int = 1) -> IntProgram:
    """A layer with weights of the whole range, about half of whose channels are safe."""
    rng = np.random.default_rng(inputs)
    weight = rng.integers(-127, 128, (24, inputs, *kernel))
    weight[::2] = np.clip(weight[::2], -64, 64)
    ends = {name: grid(1, 0, qtype) for name, qtype in GRIDS.items()} | {"out_grid": grid(260, 128)}
    weight = weight.astype(np.int8)
    if kind == "linear":
        return weighted("linear", (N, inputs), (N, 24), weight, **ends)
    ones = (1,) * len(kernel)
    attrs = {"stride": ones, "dilation": ones, "padding": ((0, 0),) * len(kernel)}
    shapes = (N, inputs * groups, *kernel), (N, 24, *ones)
    return weighted("conv", *shapes, weight, None, {**attrs, "groups": groups}, **ends)


FULL_RANGE = {
    "conv": full_range("conv", 3, (2, 2)),
    "conv of many channels": full_range("conv", 8, (1, 2)),
    "groups": full_range("conv", 4, (2, 1), groups=3),
    "linear": full_range("linear", 7, ()),
}


def worst_inputs(program: IntProgram) -> Array:
    """For each pair of each channel the inputs with its largest and its smallest sum."""
    op, weight = program.ops[0], program.constant("w")
    groups = op.attrs.get("groups", 1)
    found = []
    for channel, row in enumerate(pairs.in_pairs(weight)):
        group = channel // (len(weight) // groups)
        for index, sign in itertools.product(range(len(row)), (1, -1)):
            chosen = np.zeros((1, *row.shape), np.uint8)
            chosen[0, index] = np.where(row[index] * sign > 0, 255, 0)
            x = np.zeros((groups, *weight.shape[1:]), np.uint8)
            x[group] = pairs.from_pairs(chosen, (1, *weight.shape[1:]))[0]
            found.append(x.reshape(-1, *weight.shape[2:]))
    return np.stack(found)


def worst_job(program: IntProgram) -> Job:
    return Job(to_model(program).SerializeToString(), [{"x": worst_inputs(program)}])


@pytest.mark.parametrize("name", FULL_RANGE)
def test_the_worst_inputs_reach_the_bound_and_saturate(name: str, on_haswell: Results) -> None:
    """With one pair alone the accumulator is its sum, which int16 holds or cuts off."""
    program = FULL_RANGE[name]
    x, weight = worst_inputs(program), program.constant("w").astype(np.int64)
    groups = program.ops[0].attrs.get("groups", 1)
    each = x.reshape(len(x), groups, 1, -1).astype(np.int64)
    sums = (each * weight.reshape(1, groups, len(weight) // groups, -1)).sum(-1)
    sums = sums.reshape(len(x), -1)
    (found,) = prove_sums(program, "int16_pairs").ops
    assert (found.lowest, found.highest) == (sums.min(), sums.max())
    limits = np.iinfo(np.int16)
    unsafe = ((sums < limits.min) | (sums > limits.max)).any(axis=0)
    assert found.unsafe == tuple(np.flatnonzero(unsafe))
    assert 0 < len(found.unsafe) < len(weight)
    kept, exact = (codes_of_sums(s) for s in (np.clip(sums, limits.min, limits.max), sums))
    (result,) = on_haswell[f"worst of {name}"]
    found_codes = result["y"].reshape(len(x), -1)
    assert np.array_equal(found_codes, kept)
    assert np.array_equal((found_codes != exact).any(axis=0), unsafe)


def codes_of_sums(sums: Array) -> Array:
    """What a layer of ``FULL_RANGE`` makes of its accumulators."""
    one = np.float32(1)
    return np.clip(ACCUMULATOR["float"](sums, one, one, np.float32(260), 128), 0, 255)


# Networks


def differing(program: IntProgram, name: str, results: list[dict[str, Array]]) -> dict[str, int]:
    """How many codes of each site and output differ from the engine's, where any do."""
    engine, wrong = Engine(program), dict[str, int]()
    for inputs, result in zip(network_inputs(name, program), results, strict=True):
        anchors = {s: result[s] for s in result if s in anchored(program)}
        given = [inputs[name] for name in program.inputs]
        run = engine.run(given, keep=[s for s in program.sites if s in result], anchors=anchors)
        for site, mine in run.kept.items():
            count = int(np.count_nonzero(mine != result[site]))
            if count and site not in anchors:
                wrong[site] = wrong.get(site, 0) + count
    return wrong


def anchored(program: IntProgram) -> set[str]:
    """Codes from float kernels, whose last bits nobody promises; they go on from the runtime's."""
    return {
        op.output
        for op in program.ops
        if op.kind == "quantize" and op.inputs[0] not in program.inputs
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_repaired_network_gives_the_same_codes(
    name: str, programs: dict[str, IntProgram], on_haswell: Results
) -> None:
    program, label = programs[f"{name}, repaired"], f"{name}, repaired"
    assert prove_sums(program, "int16_pairs").safe
    results = on_haswell[label]
    assert program.sites[0] in results[0]
    assert not differing(program, name, results)
    for whole, deployed in zip(results, on_haswell[f"{label}, deployed"], strict=True):
        for output, values in deployed.items():
            assert np.array_equal(values, whole[output]), "sites exposed change the outputs"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_as_it_was_saturates(
    name: str, programs: dict[str, IntProgram], on_haswell: Results
) -> None:
    """The broken specimen: with the repair switched off, the proof fails and so do the codes."""
    program, label = programs[f"{name}, as it was"], f"{name}, as it was"
    named = {op.site for op in prove_sums(program, "int16_pairs").unsafe}
    wrong = differing(program, name, on_haswell[label])
    assert named
    assert wrong
    # All inputs of the first site that differs are equal: it is one that the proof names.
    assert next(site for site in program.sites if site in wrong) in named


def test_exact_kernels_are_the_other_way_out(
    programs: dict[str, IntProgram], on_haswell: Results
) -> None:
    program = programs["blocks, as it was"]
    results = on_haswell["blocks, as it was, by exact kernels"]
    for inputs, result in zip(network_inputs("blocks", program), results, strict=True):
        mine = Engine(program).run([inputs[name] for name in program.inputs]).outputs
        for name, values in zip(program.outputs, mine, strict=True):
            assert np.array_equal(values, result[name])


# Files


def test_a_file_says_whether_its_sums_are_proven(programs: dict[str, IntProgram]) -> None:
    for name, program in programs.items():
        assert is_proven(to_model(program)) == name.endswith("repaired")
    small = replace(programs["blocks, repaired"], target="onnxruntime", pair_sum_bits=None)
    assert is_proven(to_model(small)), "a proof is a proof, whatever the target asks for"
    assert not is_proven(onnx.ModelProto())


def test_only_files_without_a_proof_are_opened_with_exact_kernels(
    programs: dict[str, IntProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "has_vnni", lambda: False)
    entry, file = "session.x64quantprecision", tmp_path / "model.onnx"
    hs.export(programs["blocks, as it was"], file)
    options = ort.OnnxRuntimeModel(file).session.get_session_options()
    assert options.get_session_config_entry(entry) == "1"
    hs.export(programs["blocks, repaired"], file)
    options = ort.OnnxRuntimeModel(file).session.get_session_options()
    with pytest.raises(RuntimeError, match=entry):
        options.get_session_config_entry(entry)
