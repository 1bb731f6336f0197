"""The recipe of data-free quantization: no data, one scale a weight, exact in the runtime."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import halfstep as hs
from halfstep.errors import CalibrationError, DataError, UnknownNameError
from tests.models import CallTwo, normal, seeded
from tests.ptq.networks import Mobile, settled

IMAGE = (3, 8, 8)


@pytest.fixture(scope="module")
def uneven() -> nn.Module:
    """A MobileNet-like network with channels moved against each other by up to 100 times."""
    module = settled(Mobile(), IMAGE)
    generator = torch.Generator().manual_seed(0)
    layers = [module.expand, module.depthwise, module.project]
    with torch.no_grad():
        for (_, norm), (conv, _) in itertools.pairwise(layers):
            factors = 10 ** (2 * torch.rand(len(norm.weight), generator=generator) - 2)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            along = factors[:, None, None, None] if conv.groups > 1 else factors[:, None, None]
            conv.weight.div_(along)
    return module


def noise(module: nn.Module, **choices) -> float:
    """The squared error of the engine, relative to the variance of the float output."""
    x = normal(64, *IMAGE, seed=9)
    result = hs.quantize(module, [x[:4]], target="reference", **choices)
    with torch.no_grad():
        exact = module(x)
        found = torch.from_numpy(hs.Engine(result.program).run([x.numpy()]).outputs[0])
    return float((found - exact).square().mean() / exact.var())


def test_it_needs_no_data_and_is_as_good_as_scales_for_channels(uneven: nn.Module):
    plain = noise(uneven, recipe="dfq", equalization=None, absorption=None, correction=False)
    whole = noise(uneven, recipe="dfq")
    channels = noise(uneven, recipe="dfq", per_channel=True)
    assert plain > 10 * whole
    assert whole < 3 * channels


def test_the_data_does_not_matter(uneven: nn.Module):
    made = [
        hs.quantize(uneven, [batch], recipe="dfq", verify_samples=0)
        for batch in (normal(2, *IMAGE), 0 * normal(2, *IMAGE))
    ]
    texts = [str(result.program) for result in made]
    assert texts[0] == texts[1]


def test_inputs_that_were_not_normalized_are_refused(uneven: nn.Module):
    batch = 255 * normal(2, *IMAGE).abs()
    with pytest.raises(DataError, match=r"^x:in: asked for the range \(-6\.0, 6\.0\), found"):
        hs.quantize(uneven, [batch], recipe="dfq")
    high = float(batch.max())
    hs.quantize(uneven, [batch], recipe="dfq", input_range=(0.0, high), verify_samples=0)


def test_the_artifact_is_exact(uneven: nn.Module):
    batches = [normal(8, *IMAGE, seed=seed) for seed in range(3)]
    result = hs.quantize(uneven, iter(batches), recipe="dfq", verify_samples=20)
    assert result.verdict is not None
    assert result.verdict.status is hs.Status.EXACT, str(result.verdict)
    assert result.verdict.samples == 20
    assert result.verdict.integer_in_runtime == 1
    verbs = [record.verb for record in result.journal.records]
    assert verbs == [
        *("capture", "equalize", "absorb", "plan", "ranges", "correct"),
        *("scales", "lower", "export", "verify"),
    ]


STEPS = {
    "the paper's": {"equalization": "replace", "headroom": None, "absorption": "accept"},
    "correction alone": {"equalization": None, "absorption": None},
    "clipped": {"equalization": None, "absorption": None, "clip": 2.0},
    "distilled": {"distilled": 8},
    "four bits": {"weights": "int4_narrow", "per_channel": True},
}


@pytest.mark.parametrize("choices", STEPS.values(), ids=STEPS)
def test_every_step_may_be_chosen(uneven: nn.Module, choices: dict):
    result = hs.quantize(uneven, [normal(4, *IMAGE)], target="reference", recipe="dfq", **choices)
    verbs = {record.verb for record in result.journal.records}
    assert ("equalize" in verbs) == (choices.get("equalization", "caps") is not None)
    assert ("clip" in verbs) == ("clip" in choices)
    (ranges,) = [r for r in result.journal.records if r.verb == "ranges"]
    assert ("samples" in ranges.facts) == ("distilled" in choices)


def test_what_no_batch_norm_knows_asks_for_distilled_images():
    module = settled(Mobile(), IMAGE)
    module.fc = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 5))
    with pytest.raises(CalibrationError, match=r"^fc\.0:out: no batch norm says"):
        hs.quantize(module, [normal(4, *IMAGE)], recipe="dfq")
    result = hs.quantize(module, [normal(4, *IMAGE)], recipe="dfq", distilled=4, verify_samples=0)
    assert result.program.sites


def test_two_inputs_cannot_be_distilled():
    norm = nn.BatchNorm2d(3)
    module = seeded(CallTwo(lambda norm, x, y: norm(x) + y, norm))
    batch: tuple[Tensor, ...] = (normal(2, *IMAGE), normal(2, *IMAGE))
    with pytest.raises(DataError, match=r"^x, y: asked for 4 distilled images"):
        hs.quantize(module, [batch], recipe="dfq", distilled=4)


def test_an_unknown_option_is_refused(uneven: nn.Module):
    with pytest.raises(UnknownNameError, match="equalisation"):
        hs.quantize(uneven, [normal(4, *IMAGE)], recipe="dfq", equalisation="caps")
