"""Distilled images show batch norms what they remember, and the model is left as it was."""

import pytest
import torch
from torch import Tensor, nn

from halfstep.errors import DataError
from halfstep.ptq.distill_data import distill_data
from tests.models import normal, seeded
from tests.ptq.networks import Mobile, settled

SHAPE = (16, 3, 8, 8)


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    return settled(Mobile(), SHAPE[1:])


def distance(model: nn.Module, images: Tensor) -> float:
    """Squared differences of means and deviations over all batch norms, each by its channels."""
    found: list[Tensor] = []

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].movedim(1, 0).flatten(1)
        mean = (rows.mean(1) - norm.running_mean).square().mean()
        spread = (rows.std(1, unbiased=False) - norm.running_var.sqrt()).square().mean()
        found.append(mean + spread)

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(norms) == 5
    return float(torch.stack(found).sum())


def test_the_statistics_come_close(mobile: nn.Module):
    (images,) = distill_data(mobile, SHAPE, steps=200)
    assert images.shape == SHAPE
    shifted = 3 * normal(*SHAPE) + 1
    noise = normal(*SHAPE, seed=99)
    assert distance(mobile, images) < 0.2 * distance(mobile, noise)
    assert distance(mobile, images) < 0.01 * distance(mobile, shifted)
    assert abs(float(images.mean())) < 0.2
    assert float(images.std()) == pytest.approx(1, abs=0.2)


def test_the_same_seed_gives_the_same_images(mobile: nn.Module):
    one, two, other = (distill_data(mobile, SHAPE, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])


def test_batches_are_independent(mobile: nn.Module):
    two = distill_data(mobile, SHAPE, batches=2, steps=3)
    assert len(two) == 2
    assert torch.equal(two[0], distill_data(mobile, SHAPE, steps=3)[0])
    assert not torch.equal(two[0], two[1])


def test_the_model_is_left_as_it_was(mobile: nn.Module):
    mobile.train()
    mobile.head[1].eval()
    mobile.fc.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in mobile.state_dict().items()}
    distill_data(mobile, SHAPE, steps=2)
    for name, value in mobile.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert mobile.training
    assert not mobile.head[1].training
    assert not mobile.fc.weight.requires_grad
    assert mobile.fc.bias.requires_grad
    assert all(p.grad is None for p in mobile.parameters())
    assert not any(m._forward_pre_hooks for m in mobile.modules())
    mobile.fc.weight.requires_grad_(True)
    mobile.eval()


def test_gradients_are_needed_even_where_they_are_off(mobile: nn.Module):
    with torch.no_grad():
        assert len(distill_data(mobile, SHAPE, steps=2)) == 1


def test_norms_of_every_rank_are_matched():
    module = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 3), nn.BatchNorm1d(3)
    )
    (images,) = distill_data(seeded(module), (32, 2, 8), steps=5)
    assert torch.isfinite(images).all()


def test_a_model_without_batch_norm_is_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    for module in (nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(norm)):
        with pytest.raises(DataError, match=r"^Sequential: no batch norm with statistics"):
            distill_data(module, SHAPE)
