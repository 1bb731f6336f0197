"""An analysis on the terminal: the checks, the layers, the sites, and what to try."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfstep.search.analyze import Analysis
from halfstep.search.metrics import METRICS
from halfstep.search.sqnr import SiteNoise


def analysis_text(found: Analysis) -> RenderableType:
    """Everything that an analysis found, in the order of the debugging flow."""
    return Group(
        _totals(found),
        _sanity(found),
        _layers(found),
        _sites(found),
        *_unhealthy(found),
        Text("What to try", style="bold"),
        *(Text(f"  {number}. {line}") for number, line in enumerate(found.advice, 1)),
    )


def _totals(found: Analysis) -> Table:
    """What is lost by weights, by activations, and by both."""
    layers = found.layers
    text = METRICS[layers.metric].text
    table = Table(title=f"{layers.metric} on {layers.samples} samples", title_justify="left")
    table.add_column("quantized")
    table.add_column(layers.metric, justify="right")
    rows = {
        "nothing (float)": found.sanity.real,
        "nothing, quantizers off": found.sanity.bypassed,
        "all, 32 bits": found.sanity.wide,
        "weights alone": layers.weights,
        "activations alone": layers.activations,
        "all": layers.quantized,
    }
    for name, value in rows.items():
        table.add_row(name, text(value))
    return table


def _sanity(found: Analysis) -> Text:
    sanity = found.sanity
    differences = (
        f"largest difference of an output {sanity.difference:.3g} with quantizers off, "
        f"{sanity.wide_difference:.3g} of the largest with 32 bits"
    )
    if sanity.holds:
        return Text(f"The simulation is the float model while nothing is quantized: {differences}.")
    return Text(f"The simulation is NOT the float model: {differences}.", style="bold red")


def _layers(found: Analysis) -> Table:
    """Each layer alone and left out, the most sensitive first."""
    text = METRICS[found.layers.metric].text
    table = Table(title="Layers, the most sensitive first", title_justify="left")
    table.add_column("layer", overflow="fold")
    for name in ("kind", "alone", "output SQNR", "weight alone", "activations alone", "all but it"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for row in found.layers.ranked():
        rest = (row.weight, row.activations, row.without)
        cells = ["" if value is None else text(value) for value in rest]
        table.add_row(row.name, row.kind, text(row.alone), f"{row.sqnr:.1f} dB", *cells)
    return table


def _sites(found: Analysis) -> Table:
    """Noise of each site, and what is wrong with its range."""
    table = Table(title="Sites", title_justify="left")
    table.add_column("site", overflow="fold")
    for name in ("bits", "own SQNR", "total SQNR", "spread", "crest", "clipped", "used"):
        table.add_column(name, justify="right")
    noise = _by_site((*found.noise.weights, *found.noise.activations))
    for site in found.ranges:
        own, total = noise[site.site].own, noise[site.site].total
        table.add_row(
            site.site,
            str(site.bits),
            f"{own:.1f}",
            f"{total:.1f}",
            f"{site.spread:.1f}",
            f"{site.crest:.1f}",
            f"{site.clipped:.2%}",
            f"{site.used:.0%}",
            style="yellow" if site.problems else None,
        )
    return table


def _unhealthy(found: Analysis) -> list[Text]:
    if not found.unhealthy:
        return []
    lines = (Text(f"  {site.site}: {'; '.join(site.problems)}") for site in found.unhealthy)
    return [Text("Unhealthy ranges", style="bold"), *lines]


def _by_site(rows: Sequence[SiteNoise]) -> dict[str, SiteNoise]:
    return {row.site: row for row in rows}
