"""Weights from a safetensors file into a model; nothing is ever unpickled."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from halfstep.errors import DataError


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load every parameter and buffer of ``model`` from ``path``.

    Raises:
        DataError: the file is missing, truncated, not safetensors, or of another model.
    """
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a complete safetensors file ({error})") from error
    wanted = model.state_dict()
    # Counters of batch norms are not used in inference, and many files leave them out.
    missing = [k for k in wanted.keys() - state.keys() if not k.endswith("num_batches_tracked")]
    foreign = sorted(state.keys() - wanted.keys())
    if missing or foreign:
        raise DataError(
            f"{path}: weights of another model: {len(missing)} missing "
            f"({', '.join(sorted(missing)[:3])}), {len(foreign)} unknown ({', '.join(foreign[:3])})"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise DataError(
                f"{path}: {name}: asked for shape {tuple(wanted[name].shape)}, "
                f"found {tuple(value.shape)}"
            )
    model.load_state_dict(state, strict=False)
