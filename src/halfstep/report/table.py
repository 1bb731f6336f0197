"""The end of a run on the terminal: decisions, the verdict, coverage, size, speed and time."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfstep.errors import counted
from halfstep.journal import Journal
from halfstep.report.latency import Gain
from halfstep.verdict import Status, Verdict

_STYLES = {Status.EXACT: "bold green", Status.BOUNDED: "bold yellow", Status.FAILED: "bold red"}
_MOST_NAMES = 4


def ending(
    verdict: Verdict, gain: Gain | str = "", journal: Journal | None = None
) -> RenderableType:
    """Everything that a run found, as far as it is known; for a gain perhaps why it is not."""
    facts = [("integer MACs", verdict.coverage)]
    facts += [("not integer", line) for line in _float_lines(verdict.floats)]
    if isinstance(gain, Gain):
        facts += _gain_lines(gain)
    elif gain:
        facts.append(("latency", f"not compared with float: {gain}"))
    if journal is not None:
        steps = [f"{record.verb} {record.seconds:.1f}" for record in journal.records]
        total = sum(record.seconds for record in journal.records)
        facts.append(("seconds", f"{total:.1f}: {', '.join(steps)}"))
    lines = (Text(f"  {name:<13} {fact}") for name, fact in facts)
    return Group(*_decisions(verdict), verdict_text(verdict), *lines)


def verdict_text(verdict: Verdict) -> Text:
    """The verdict in one line; where it failed, with the cause and the sites that differ."""
    lines = [str(verdict).partition("\n")[0]]
    if verdict.cause:
        lines.append(f"  first divergence: {verdict.cause}")
    differing = [site for site in verdict.comparable if site.mismatches]
    lines += [
        f"  {site.site}: {site.mismatches} of {site.compared} codes differ, by up to {site.largest}"
        for site in differing[:_MOST_NAMES]
    ]
    if len(differing) > _MOST_NAMES:
        lines.append(f"  and {counted(len(differing) - _MOST_NAMES, 'more site')}")
    text = Text("\n".join(lines))
    text.stylize(_STYLES[verdict.status], 0, len(str(verdict.status)))
    return text


def _float_lines(floats: Mapping[str, str]) -> list[str]:
    """Operations that do not run on integer kernels, one line a reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in floats.items():
        groups.setdefault(reason, []).append(name)
    lines = []
    for reason, names in groups.items():
        more = len(names) - _MOST_NAMES
        listed = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{listed}: {reason}")
    return lines or ["no operation"]


def _decisions(verdict: Verdict) -> list[RenderableType]:
    """Top-1 and agreement of each stage; nothing for a model that does not classify."""
    compared = {
        name.removesuffix(" and engine"): share for name, share in verdict.agreement.items()
    }
    if not compared:
        return []
    table = Table()
    table.add_column("stage")
    if verdict.accuracy:
        table.add_column("top-1", justify="right")
    table.add_column("decisions as the engine", justify="right")
    models = [name for name in compared if name != "runtime"]
    for stage in (*models, "engine", "runtime"):
        accuracy = [f"{verdict.accuracy[stage]:.2%}"] if verdict.accuracy else []
        same = f"{compared[stage]:.2%}" if stage in compared else ""
        table.add_row(stage, *accuracy, same)
    return [table]


def _gain_lines(gain: Gain) -> list[tuple[str, str]]:
    smaller = gain.float_bytes / gain.integer_bytes
    faster = gain.float_seconds / gain.integer_seconds
    how = f"batch 1, fastest of {gain.rounds} runs each, in turns"
    return [
        (
            "file size",
            (
                f"{gain.float_bytes / 1000:,.0f} kB float, {gain.integer_bytes / 1000:,.0f} kB "
                f"integer: ratio {smaller:.2f}"
            ),
        ),
        (
            "latency",
            (
                f"{1000 * gain.float_seconds:.3f} ms float, {1000 * gain.integer_seconds:.3f} ms "
                f"integer: speed-up {faster:.2f} ({how})"
            ),
        ),
    ]
