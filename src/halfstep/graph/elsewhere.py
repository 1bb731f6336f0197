"""Look at a captured graph on other values than the example's.

A rewrite that forgets something may not show on two samples: a bound that none of their values
reaches changes nothing. Values of the other sign and three times as large reach most of them.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from halfstep.errors import CaptureError
from halfstep.graph.eager import outputs_of, tensors_in

_FACTOR = -3.0
# A value near a threshold may fall on the other side; a forgotten operation moves many, and far.
_FAR, _MANY = 1e-2, 1e-2


def compare_elsewhere(
    module: fx.GraphModule, model: nn.Module, inputs: Mapping[str, Tensor], by_name: bool
) -> None:
    """Raise ``CaptureError`` if the graph computes something else on other values.

    Nothing is said where the model cannot run on them, or gives no numbers.

    Args:
        module: the captured graph.
        model: what it was captured from, in eval mode.
        inputs: the example, by name and in order.
        by_name: the model takes them by keyword.
    """
    moved = {name: value * _FACTOR if value.is_floating_point() else value.flip(-1)
             for name, value in inputs.items()}  # fmt: skip
    try:
        outputs = outputs_of(copy.deepcopy(model), moved, by_name)
    except Exception:  # whatever the model's own code raises on values that nobody promised
        return
    found = module(*moved.values())
    pairs = zip(tensors_in(found), tensors_in(outputs), strict=True)
    for index, (f, w) in enumerate(pairs):
        if not w.is_floating_point() or not w.numel() or not torch.isfinite(w).all():
            continue
        distances = (f - w).abs()
        share = float((distances > _FAR * w.abs().max()).float().mean())
        if share > _MANY or not torch.isfinite(distances).all():
            raise CaptureError(
                f"output {index}: the captured graph and the model are equal on the example, and "
                f"not on its values times {_FACTOR:g}: {share:.0%} of the output's values are "
                "others. Please report this; until then, write the part that depends on the sign "
                "or size of values with torch.where"
            )
