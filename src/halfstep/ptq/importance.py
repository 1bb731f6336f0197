"""How much each position of a sequence counts in the error of a layer.

The tokens of a sequence are not alike. Behind a mask, padded ones have values like any other, often
most of the positions are theirs, and the output does not depend on them at all; in the last block
of an encoder it may depend on one token alone. A few tokens have values a hundred times as large as
the others', which the next layer norm divides out again. An error counts by what it does to the
output, and that is, to first order, its square times the influence of its place
(``ptq.influence``): here of a position, the mean over its channels.

Reference: as of ``ptq.influence``. Deviation: one weight a position, so that the error of a layer
stays a quadratic form of its inputs' moments for all of its rows.
"""

from collections.abc import Sequence

from torch import Tensor

from halfstep.graph.insert import QuantizedModel
from halfstep.graph.readers import shape_of
from halfstep.ptq.influence import influences


def importance(
    model: QuantizedModel, data: Sequence[tuple[Tensor, ...]]
) -> dict[str, list[Tensor]]:
    """For each linear layer and layer norm over a sequence, and each batch: (N, *positions).

    By name of the unit; 1 in the mean over the data. Other layers are not in it: their positions
    count alike. A layer that the output does not depend on at all is left out as well.

    Args:
        model: whose float graph is run, and its gradients taken; one batch takes the memory of a
            training step without gradients of parameters.
        data: the inputs of each batch.
    """
    norms = [unit for unit in model.units.units if unit.kind == "layer_norm"]
    heads = {
        unit.head: unit.name
        for unit in (*model.weighted_units(), *norms)
        if unit.kind in ("linear", "layer_norm") and len(shape_of(unit.head)) > 2
    }
    found: dict[str, list[Tensor]] = {name: [] for name in heads.values()}
    if heads:
        for _, batch in influences(model.graph.module, model.graph, heads.keys(), data):
            for head, influence in batch.items():
                found[heads[head]].append(influence.weight.mean(-1))
    means = {
        name: float(sum(w.sum() for w in weights)) / sum(w.numel() for w in weights)
        for name, weights in found.items()
    }
    return {name: [w / means[name] for w in ws] for name, ws in found.items() if means[name] > 0}
