"""Every error that Halfstep raises on purpose.

    HalfstepError
    ├── CaptureError      the model cannot be captured
    ├── PlanError         a plan asks for what the target, or the graph, does not have
    ├── DataError         a batch, a loader or a file of data is not what was asked for
    ├── CalibrationError  a range could not be found
    ├── LowerError        a quantized graph cannot become an integer program
    ├── ProgramError      an integer program breaks its specification
    ├── ExportError       an artifact could not be written
    ├── RuntimeUnavailableError  an optional package or program is missing
    └── UnknownNameError  a name that is in no catalog

A message names the site first, so that logs sort, then what was asked, what was found, and what
to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HalfstepError(Exception):
    """The root of all errors below."""


class CaptureError(HalfstepError):
    """The model cannot be captured; the message names the source line and what to change."""


class PlanError(HalfstepError):
    """A plan asks for something that the target does not accept, or for an unknown site."""


class DataError(HalfstepError):
    """Data of the wrong shape, dtype or value; the message names the batch and the site."""


class CalibrationError(HalfstepError):
    """A site got no usable range."""


class LowerError(HalfstepError):
    """A quantized graph has no integer program for its target."""


class ProgramError(HalfstepError):
    """An integer program violates its specification: a bug of the producer, never of the data."""


class ExportError(HalfstepError):
    """An artifact could not be written; nothing half-written is left behind."""


class RuntimeUnavailableError(HalfstepError):
    """An optional package or program is missing; the message says which extra to install."""


class UnknownNameError(HalfstepError):
    """A name that no catalog, table or graph knows."""


def counted(n: int, what: str) -> str:
    """``n`` of what is called ``what``, if there is one of it."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# Of names that resemble none of them, so many are listed.
_LISTED = 24


def unknown_name(
    what: str, name: str, known: Iterable[str], *, list_all: bool = False
) -> UnknownNameError:
    """The error for ``name``, with the nearest known names as a suggestion, or else with many.

    Args:
        what: there is none of that name.
        name: what was asked for.
        known: the names that there are.
        list_all: list every one, and beside a suggestion as well.
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=3, cutoff=0.6)
    hints = [f"did you mean {' or '.join(map(repr, near))}?"] if near else []
    if list_all or not near:
        listed = names if list_all else names[:_LISTED]
        more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
        hints.append(f"known are {', '.join(listed or ['none'])}{more}")
    return UnknownNameError(f"unknown {what} {name!r}: {' '.join(hints)}")
