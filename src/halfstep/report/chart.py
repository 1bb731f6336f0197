"""Horizontal bars as inline SVG, without scripts: their colours come from the page's style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfstep.report.markup import Markup, join, tag

_WIDTH, _ROW, _BAR = 480, 26, 12
_NAMES, _VALUES = 110, 76  # what is left free for text at both sides of the bars


@dataclass(frozen=True)
class Bar:
    """One row of a chart.

    Attributes:
        name: what stands in front of it.
        parts: lengths from left to right, by the class that colours them.
        value: what stands behind it.
    """

    name: str
    parts: Mapping[str, float]
    value: str


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """The bars on one scale, the longest as wide as there is room."""
    longest = max((sum(bar.parts.values()) for bar in bars), default=0.0)
    unit = (_WIDTH - _NAMES - _VALUES) / longest if longest > 0 else 0.0
    height = _ROW * len(bars)
    return tag(
        "svg",
        tag("title", title),
        *(_row(bar, index * _ROW, unit) for index, bar in enumerate(bars)),
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        class_="chart",
    )


def _row(bar: Bar, top: int, unit: float) -> Markup:
    left, pieces = float(_NAMES), []
    track = _WIDTH - _NAMES - _VALUES
    y, middle = top + (_ROW - _BAR) / 2, top + _ROW / 2
    pieces.append(_rectangle("track", _NAMES, y, track))
    for kind, length in bar.parts.items():
        width = max(length * unit, 1.5) if length > 0 else 0.0
        if width:
            pieces.append(_rectangle(kind, left, y, width))
        left += width
    return tag(
        "g",
        tag("text", bar.name, x=_NAMES - 12, y=middle, text_anchor="end", class_="name"),
        join(*pieces),
        tag("text", bar.value, x=_WIDTH - _VALUES + 12, y=middle, class_="value"),
    )


def _rectangle(kind: str, x: float, y: float, width: float) -> Markup:
    return tag("rect", x=f"{x:.1f}", y=y, width=f"{width:.1f}", height=_BAR, rx=3, class_=kind)
