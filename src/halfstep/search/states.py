"""Which quantizers of a model are on, and on which grids; changed for a while, then restored."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import Tensor

from halfstep.core.execution import Execution
from halfstep.core.grid import Affine
from halfstep.core.spec import QuantSpec
from halfstep.graph.insert import QuantizedModel
from halfstep.graph.match import Unit
from halfstep.graph.placement import QUANTIZED, quantized_values
from halfstep.quant.bias import BiasQuantizer
from halfstep.quant.quantizer import Quantizer

State = Mapping[str, bool | Affine]
"""For the sites of some quantizers: off, on as they are, or on with this grid. Biases follow."""


@contextmanager
def applied(model: QuantizedModel, state: State) -> Iterator[None]:
    """Put quantizers of ``model`` into ``state`` while the body runs; restored even on error."""
    with ExitStack() as restoring:
        for site, wanted in state.items():
            quantizer = model.quantizer(site)
            restoring.enter_context(_restored(quantizer))
            quantizer.enabled = wanted is not False
            if isinstance(wanted, Affine):
                quantizer.spec = replace(quantizer.spec, qtype=wanted.qtype)
                quantizer.set_grid(wanted)
        yield


@contextmanager
def real_biases(model: QuantizedModel) -> Iterator[None]:
    """Leave biases as they are, whatever the quantizers around them do, while the body runs."""
    quantizers = [m for m in model.module.modules() if isinstance(m, BiasQuantizer)]
    before = [quantizer.enabled for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled


@contextmanager
def _restored(quantizer: Quantizer) -> Iterator[None]:
    enabled: bool = quantizer.enabled
    spec: QuantSpec = quantizer.spec
    values: dict[str, Tensor] = {k: v.clone() for k, v in quantizer.state_dict().items()}
    try:
        yield
    finally:
        quantizer.enabled, quantizer.spec = enabled, spec
        quantizer.load_state_dict(values)


def quantized_units(model: QuantizedModel) -> tuple[Unit, ...]:
    """The units that compute on codes, copies aside: those that could stay in float instead."""
    return tuple(u for u in model.units.units if model.plan.executions[u.name] in QUANTIZED)


def sites_of(model: QuantizedModel, units: Collection[str]) -> frozenset[str]:
    """The quantizers that are in use if of all quantized operations ``units`` alone are quantized.

    They are those that ``prepare`` makes for a plan that keeps the others in float: the weights of
    these units, and every value that one of them reads or makes. Units that share a weight share
    its quantizer: it is in use if one of them is quantized.
    """
    executions = {
        name: Execution.FLOAT if how in QUANTIZED and name not in units else how
        for name, how in model.plan.executions.items()
    }
    values = quantized_values(model.units, executions)
    sites = {model.site_quantizer[model.units.sites[node]] for node in values}
    return frozenset(
        sites | {model.weight_site(u) for u in model.weighted_units() if u.name in units}
    )


def only(model: QuantizedModel, sites: Collection[str]) -> dict[str, bool]:
    """The state in which the quantizers of ``sites`` are on, and all others off."""
    return {quantizer.site: quantizer.site in sites for quantizer in model.quantizers()}
