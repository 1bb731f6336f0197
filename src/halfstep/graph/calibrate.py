"""Find the ranges: weights from themselves, activations by watching data flow through."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfstep.catalog import find
from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.data import batches
from halfstep.errors import CalibrationError, DataError
from halfstep.graph.insert import QuantizedModel, check_batch
from halfstep.progress import Progress, silent
from halfstep.quant.bias import widen_for_bias
from halfstep.quant.calibrators.base import Calibrator
from halfstep.quant.quantizer import Quantizer


def calibrate(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    calibrator: str | None = None,
    progress: Progress = silent,
) -> int:
    """Give every quantizer of ``model`` its grid; return the number of samples seen.

    Activations are watched in the float model, each batch once, nothing of it kept.

    Args:
        model: from ``prepare``.
        data: batches; see ``halfstep.data.batches``.
        calibrator: overrides that of the plan, for all activations.
        progress: wraps the batches; shows how far it is.

    Raises:
        DataError: an empty loader, or a batch of a wrong shape, dtype or value.
        CalibrationError: a site without a usable range.
    """
    calibrate_weights(model)
    watched = observe(model, data, calibrator=calibrator, progress=progress)
    for site, found in watched.calibrators.items():
        quantizer = model.quantizer(site)
        quantizer.set_grid(grid_of(found, quantizer.spec, site))
    keep_biases_small(model)
    return watched.samples


@dataclass(frozen=True, eq=False)
class Watched:
    """What the activations of the float model were seen to be.

    Attributes:
        samples: how many samples were seen.
        calibrators: for each quantizer of activations or constants, by its site, what watched.
    """

    samples: int
    calibrators: Mapping[str, Calibrator]


def observe(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    calibrator: str | None = None,
    progress: Progress = silent,
) -> Watched:
    """Watch the activations of the float model; no grid changes.

    Several ranges can be read from what one calibrator saw: see ``Calibrator.adopt``.

    Args:
        model: from ``prepare``; it is left as it was.
        data: batches; read once, nothing of it kept.
        calibrator: overrides that of the plan, for all activations.
        progress: wraps the batches; shows how far it is.

    Raises:
        DataError: an empty loader, or a batch of a wrong shape, dtype or value.
    """
    watching = [model.quantizer(site) for site in model.activation_sites()]
    was_training = model.training
    were_on = {site: model.quantizer(site).enabled for site in model.weight_sites()}
    found = {q.site: make_calibrator(q.spec, calibrator) for q in watching}
    model.eval()
    try:
        for quantizer in watching:
            quantizer.calibrator = found[quantizer.site]
        for site in were_on:
            model.quantizer(site).enabled = False
        return Watched(_watch(model, data, progress), found)
    finally:
        for quantizer in watching:
            quantizer.calibrator = None
        for site, on in were_on.items():
            model.quantizer(site).enabled = on
        model.train(was_training)


def make_calibrator(spec: QuantSpec, name: str | None = None) -> Calibrator:
    """The calibrator of a spec, or the one called ``name`` instead."""
    if spec.dictated:
        name = None
    made: Calibrator = find("calibrator", name or spec.calibrator)(
        spec.qtype,
        axis=spec.axis,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
        pow2=spec.pow2,
        **({} if name else spec.options),
    )
    return made


def calibrate_weights(model: QuantizedModel) -> None:
    """Give every weight the grid that its spec's calibrator finds in it; no data is needed.

    Raises:
        CalibrationError: a weight with NaN or infinity.
    """
    for unit in model.weighted_units():
        assert unit.weight is not None
        fit_grid(model.quantizer(model.weight_site(unit)), model.parameter_of(unit.weight))


def fit_grid(quantizer: Quantizer, constant: Tensor) -> None:
    """Give a quantizer the grid that its spec's calibrator finds in the one value that it gets.

    Raises:
        CalibrationError: a value with NaN or infinity.
    """
    found = make_calibrator(quantizer.spec)
    try:
        found.update(constant.detach())
    except CalibrationError as error:
        raise CalibrationError(f"{quantizer.site}: {error}") from error
    quantizer.set_grid(grid_of(found, quantizer.spec, quantizer.site))


def _watch(model: QuantizedModel, data: Iterable[Any], progress: Progress) -> int:
    seen = 0
    prepared = batches(data, model.graph.inputs, torch.as_tensor)
    with torch.inference_mode():
        for index, (inputs, _) in enumerate(progress(prepared, "calibrate")):
            check_batch(model.graph, inputs, index)
            try:
                model.module(*inputs)
            except CalibrationError as error:
                raise DataError(f"{error}, in batch {index}") from error
            seen += len(inputs[0])
    return seen


def grid_of(calibrator: Calibrator, spec: QuantSpec, site: str) -> Affine:
    """The grid on the range that ``calibrator`` found for ``site``.

    Raises:
        CalibrationError: it saw nothing, or no usable range.
    """
    try:
        low, high = calibrator.range()
        return Affine.from_range(
            low,
            high,
            spec.qtype,
            axis=spec.axis,
            group_size=spec.group_size,
            symmetric=spec.symmetric,
            pow2=spec.pow2,
        )
    except CalibrationError as error:
        raise CalibrationError(f"{site}: {error}") from error


def keep_biases_small(model: QuantizedModel) -> None:
    """Raise the weight scales of channels whose bias would overflow; see ``quant.bias``."""
    for unit in model.weighted_units():
        if unit.bias is None:
            continue
        weight = model.quantizer(model.weight_site(unit))
        source = model.quantizer(model.units.sites[unit.inputs[0]])
        bias = model.parameter_of(unit.bias).detach().cpu().numpy()
        if not torch.isfinite(torch.from_numpy(bias)).all():
            raise CalibrationError(f"{unit.name}:bias: it holds NaN or infinity")
        weight.set_grid(
            widen_for_bias(
                weight.grid(), bias, source.grid(), model.bias_type(unit), weight.spec.pow2
            )
        )
