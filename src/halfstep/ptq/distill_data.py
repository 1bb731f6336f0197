"""Images made from nothing but the statistics in a model's batch norms.

Reference: Cai et al. 2020, ZeroQ (arXiv 2001.00281), section 3.1, equation 3: starting from normal
noise, the input is optimized until the mean and the standard deviation of what every batch norm
reads are those that it remembers from training; the input itself is held to mean 0 and deviation
1:

    min_x  sum_i |m_i(x) - mu_i|^2 + |d_i(x) - sigma_i|^2,   i = 0 is the input: mu = 0, sigma = 1

Symbols: ``m_i, d_i`` are taken over the samples and positions of the batch, for each channel;
``sigma_i`` is the square root of the running variance.

Deviations: the distance of each batch norm is averaged over its channels, as in the authors' code,
so that wide layers do not outvote narrow ones. Images of several batches are independent.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halfstep.errors import DataError
from halfstep.progress import Progress, silent

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# The loss has to fall by this share within so many steps, or the learning rate does.
_LEAST_GAIN, _PATIENCE = 1e-3, 50


def distill_data(
    model: nn.Module,
    shape: Sequence[int],
    *,
    batches: int = 1,
    steps: int = 500,
    learning_rate: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Tensor]:
    """Batches of images whose statistics are those of the training data.

    Args:
        model: the float model with its batch norms, in any mode; it is left as it was.
        shape: of a batch, (samples, channels, ...): what ``model`` takes as its one input.
        batches: how many to make.
        steps: of Adam, for each batch.
        learning_rate: of Adam, divided by 10 at each plateau; the third one ends a batch.
        seed: of the noise that the images start from.
        progress: wraps the batches.

    Raises:
        DataError: the model has no batch norm with statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    if not norms:
        raise DataError(
            f"{type(model).__name__}: no batch norm with statistics, so nothing to match images "
            "to; calibrate on real data"
        )
    generator = torch.Generator().manual_seed(seed)
    made = []
    with _frozen(model):
        for _ in progress(range(batches), "distill"):
            noise = torch.randn(tuple(shape), generator=generator)
            made.append(_optimized(model, norms, noise, steps, learning_rate))
    return made


def _optimized(
    model: nn.Module, norms: Sequence[nn.Module], noise: Tensor, steps: int, learning_rate: float
) -> Tensor:
    """One batch, from the noise that it starts as."""
    images = noise.requires_grad_()
    optimizer = torch.optim.Adam([images], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=_PATIENCE, threshold=_LEAST_GAIN
    )
    for _ in range(steps):
        with _distances(norms) as distances:
            model(images)
        zeros, ones = torch.zeros(images.shape[1]), torch.ones(images.shape[1])
        loss = torch.stack([*distances, _distance(images, zeros, ones)]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step(loss.detach())
        if optimizer.param_groups[0]["lr"] < learning_rate / 500:
            break
    return images.detach()


@contextmanager
def _distances(norms: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While the model runs, collect for each batch norm how far its input is from its memory."""
    found: list[Tensor] = []

    def look(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        deviation = norm.running_var.sqrt()
        found.append(_distance(inputs[0], norm.running_mean, deviation))

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(look).remove)
        yield found


def _distance(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Squared differences of means and of deviations, each averaged over the channels."""
    rows = values.movedim(1, 0).flatten(1)
    spread = (rows.var(1, unbiased=False) + 1e-12).sqrt()
    return (rows.mean(1) - mean).square().mean() + (spread - deviation).square().mean()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for parameters, until the end."""
    was_training = {module: module.training for module in model.modules()}
    needed = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)
        for module, training in was_training.items():
            module.training = training
