"""What a model costs on a microcontroller: ROM, RAM, and an estimate of cycles.

ROM of constants, the arena and the multiply-accumulates are counted. Cycles are an **estimate**:
how often each inner loop runs, times the cycles of one turn in the table below. The table counts
the instructions of the loops in C for a core of the Cortex-M4's class (loads of 2 cycles, one
multiply-accumulate, no vector instructions, code and data without wait states); it was not
measured on a core. Relations between layers are what it is good for.
"""

from dataclasses import asdict, dataclass
from typing import Any

from halfstep.export.c99.arena import Placement
from halfstep.export.c99.draft import Draft
from halfstep.export.c99.source import scratch_sizes

# Cycles of one turn of a kernel's inner loop: for one multiply-accumulate, or for one code.
CYCLES = {
    "conv int8": 6,
    "conv packed": 13,
    "depthwise int8": 10,
    "depthwise packed": 17,
    "matmul": 7,
    "add": 90,
    "mul": 50,
    "lookup": 6,
    "pool": 7,
    "softmax": 40,
    "norm": 160,
    "copy": 8,
}
# Cycles of making one code of one sum.
RESCALE = 45
_SUMS = frozenset({"conv int8", "conv packed", "depthwise int8", "depthwise packed", "matmul"})
_BYTES = {"patch": 2, "sums": 4}


@dataclass(frozen=True)
class LayerCost:
    """One call: the codes that it makes, its multiply-accumulates, its estimated cycles."""

    name: str
    kernel: str
    codes: int
    macs: int
    cycles: int


@dataclass(frozen=True)
class Cost:
    """Of one sample.

    Attributes:
        rom: bytes of read-only data, by what they are.
        arena: bytes of intermediate codes.
        live: bytes of the codes that must exist at once: no arena is smaller.
        scratch: bytes that single layers need beside it.
        layers: in order of execution.
    """

    rom: dict[str, int]
    arena: int
    live: int
    scratch: int
    layers: tuple[LayerCost, ...]

    @property
    def cycles(self) -> int:
        """Estimated, of the whole model."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole model."""
        return sum(layer.macs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        totals = {"macs": self.macs, "estimated_cycles": self.cycles, "rom": sum(self.rom.values())}
        return {"schema": 1, "totals": totals, **asdict(self)}


def cost_of(draft: Draft, placed: Placement) -> Cost:
    """Count what was drafted."""
    rom: dict[str, int] = {}
    for constant in draft.constants.values():
        rom[constant.what] = rom.get(constant.what, 0) + constant.values.nbytes
    layers = []
    for step in draft.steps:
        sums = step.kernel in _SUMS
        cycles = step.work * CYCLES[step.kernel] + (step.use.size * RESCALE if sums else 0)
        name = step.site or f"{step.use.writes} (layout)"
        macs = step.work if sums else 0
        layers.append(LayerCost(name, step.kernel, step.use.size, macs, cycles))
    scratch = sum(_BYTES[key] * n for key, n in scratch_sizes(draft).items())
    return Cost(rom, placed.size, placed.live, scratch, tuple(layers))


def cost_page(cost: Cost) -> str:
    """The same for people."""
    rom = ", ".join(f"{what} {size:,}" for what, size in sorted(cost.rom.items()))
    turns = ", ".join(f"{kind} {n}" for kind, n in CYCLES.items())
    ram = (
        f"arena {cost.arena:,}, of which {cost.live:,} must live at once; scratch {cost.scratch:,}"
    )
    lines = [
        "# What it costs",
        "",
        f"- read-only data: {sum(cost.rom.values()):,} bytes ({rom})",
        f"- RAM: {cost.arena + cost.scratch:,} bytes ({ram})",
        f"- multiply-accumulates: {cost.macs:,}",
        f"- cycles, estimated: {cost.cycles:,}",
        "",
        "Cycles are an estimate, not measured on a core of the Cortex-M4's class: turns of each",
        f"inner loop times {turns}, and {RESCALE} to make a code of a sum.",
        "",
        "| layer | kernel | codes | multiply-accumulates | cycles, estimated |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c.name} | {c.kernel} | {c.codes:,} | {c.macs:,} | {c.cycles:,} |" for c in cost.layers
    ]
    return "\n".join([*lines, ""])
