"""HTML and SVG from plain text: whatever is not markup already is escaped, by construction."""

from html import escape

_WITHOUT_END = frozenset({"meta", "wbr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element; an attribute called ``class_`` is ``class``, and ``text_anchor`` has a dash."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    if name in _WITHOUT_END:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """The parts behind one another, escaped where they are text."""
    return Markup("".join(p if isinstance(p, Markup) else escape(p) for p in parts))
