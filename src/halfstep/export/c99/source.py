"""The text of a model's files: header, layers and calls, and data."""

from collections.abc import Sequence

from halfstep.export.c99.arena import Placement
from halfstep.export.c99.draft import Constant, Draft
from halfstep.export.c99.ports import Port

# Values in one line of data.
_A_LINE = 16
_SHOW = """\
#ifdef HALFSTEP_TRACE
#define SHOW(site, codes, size) halfstep_trace(site, codes, size)
#else
#define SHOW(site, codes, size) ((void)(codes))
#endif"""
_SCRATCH = {"patch": ("int16_t", 2), "sums": ("int32_t", 4)}


def header(draft: Draft, ports: tuple[list[Port], list[Port]], placed: Placement) -> str:
    """``model.h``: how to call the model, and what its codes mean."""
    name, macro = draft.prefix, draft.prefix.upper()
    inputs, outputs = ports
    scratch = sum(_SCRATCH[key][1] * n for key, n in scratch_sizes(draft).items())
    lines = [
        f"/* A neural network in integers, made by Halfstep for target '{draft.program.target}'.",
        " *",
        " * A code c stands for the real number scale * (c - zero_point). Arrays of one sample:",
        *(
            f" *   {port.variable}: {port.described()}, {port.c_type}"
            for port in (*inputs, *outputs)
        ),
        *(f" * {name} is no argument: nothing reads it." for name in _unread(draft, inputs)),
        " */",
        f"#ifndef {macro}_H",
        f"#define {macro}_H",
        "",
        "#include <stdint.h>",
        "",
        "/* Bytes of RAM: intermediate codes, and what single layers need beside them. */",
        f"#define {macro}_ARENA_BYTES {max(placed.size, 1)}",
        f"#define {macro}_SCRATCH_BYTES {scratch}",
        "",
    ]
    for port in (*inputs, *outputs):
        lines += [*port.constants(macro), ""]
    lines += [
        "/* One sample. Uses one arena: not to be called while it runs. */",
        f"{prototype(draft, ports)};",
        "",
        "#ifdef HALFSTEP_FLOAT",
        "/* Real values to codes, saturating, and back; everything else is integers. Compile with",
        " * -DHALFSTEP_FLOAT, and link with -lm. */",
        *(f"{line};" for line in _conversions(name, ports)),
        "#endif",
        "",
        "#ifdef HALFSTEP_TRACE",
        "/* The caller's own: is shown the codes of every site, in the order of sites.json. */",
        "void halfstep_trace(int32_t site, const int8_t *codes, int32_t size);",
        "#endif",
        "",
        f"#endif /* {macro}_H */",
    ]
    return "\n".join([*lines, ""])


def _unread(draft: Draft, inputs: list[Port]) -> list[str]:
    """Inputs of the model that have no parameter, as identifiers."""
    places = {port.place for port in inputs}
    return [draft.names[x] for i, x in enumerate(draft.program.inputs) if i not in places]


def prototype(draft: Draft, ports: tuple[list[Port], list[Port]]) -> str:
    """The function that runs one sample."""
    inputs, outputs = ports
    parameters = [f"const {port.c_type} *{port.variable}" for port in inputs]
    parameters += [f"int8_t *{port.variable}" for port in outputs]
    return f"void {draft.prefix}_run({', '.join(parameters)})"


def model(draft: Draft, ports: tuple[list[Port], list[Port]], placed: Placement) -> str:
    """``model.c``: every layer, and the calls in order."""
    name, macro = draft.prefix, draft.prefix.upper()
    arrays = [f"static int8_t arena[{macro}_ARENA_BYTES];"]
    arrays += [f"static {_SCRATCH[key][0]} {key}[{n}];" for key, n in scratch_sizes(draft).items()]
    includes = [f'#include "{name}.h"\n', "#include <string.h>\n", '#include "halfstep.h"']
    parts = [
        "\n".join([*includes, f'#include "{name}_data.h"']),
        _SHOW,
        "\n".join(arrays),
        *draft.layers,
        "\n".join([prototype(draft, ports), "{", *_body(draft, ports[1], placed), "}"]),
        _float_wrapper(name, ports),
    ]
    return "\n\n".join([*parts, ""])


def _body(draft: Draft, outputs: list[Port], placed: Placement) -> list[str]:
    lines = []
    for step in draft.steps:
        variable = step.use.writes
        lines.append(f"int8_t *const {variable} = arena + {placed.offsets[variable]};")
    numbers = {site: index for index, site in enumerate(traced_sites(draft))}
    for index in range(-1, len(draft.steps)):
        if index >= 0:
            lines += draft.steps[index].calls
        for site, made in draft.made.items():
            if made == index:
                lines.append(f"SHOW({numbers[site]}, {draft.read(site)}, {draft.size(site)});")
    for port in outputs:
        source = draft.read(port.source)
        lines.append(f"memcpy({port.variable}, {source}, {port.size});")
    return [f"    {line}" for line in lines]


def traced_sites(draft: Draft) -> list[str]:
    """Sites in the order in which they are shown."""
    return sorted(draft.made, key=lambda site: draft.made[site])


def scratch_sizes(draft: Draft) -> dict[str, int]:
    """Values of each scratch array: what the layer that needs the most of it needs."""
    sizes: dict[str, int] = {}
    for step in draft.steps:
        for key, n in step.scratch.items():
            sizes[key] = max(sizes.get(key, 0), n)
    return sizes


def _conversions(name: str, ports: tuple[list[Port], list[Port]]) -> list[str]:
    inputs, outputs = ports
    return [
        *(
            f"void {name}_quantize_{port.variable}(const float *real, int8_t *codes)"
            for port in inputs
            if port.grid is not None
        ),
        *(
            f"void {name}_dequantize_{port.variable}(const int8_t *codes, float *real)"
            for port in outputs
        ),
    ]


def _float_wrapper(name: str, ports: tuple[list[Port], list[Port]]) -> str:
    inputs, outputs = ports
    macro = name.upper()
    lines = ["#ifdef HALFSTEP_FLOAT", "#include <math.h>"]
    heads = iter(_conversions(name, ports))
    for port in inputs:
        if port.grid is None:
            continue
        own, qtype = f"{macro}_{port.macro}", port.grid.qtype
        low, high = (code - port.to_dict()["offset"] for code in (qtype.qmin, qtype.qmax))
        lines += [
            "",
            next(heads),
            "{",
            f"    for (int32_t i = 0; i < {own}_SIZE; i++) {{",
            f"        const float code = rintf(real[i] / {own}_SCALE) + {own}_ZERO_POINT;",
            f"        codes[i] = (int8_t)(code < {low} ? {low} : code > {high} ? {high} : code);",
            "    }",
            "}",
        ]
    for port in outputs:
        own = f"{macro}_{port.macro}"
        lines += [
            "",
            next(heads),
            "{",
            f"    for (int32_t i = 0; i < {own}_SIZE; i++) {{",
            f"        real[i] = {own}_SCALE * (float)(codes[i] - {own}_ZERO_POINT);",
            "    }",
            "}",
        ]
    return "\n".join([*lines, "#endif"])


def data_header(name: str, constants: Sequence[Constant]) -> str:
    """``model_data.h``: what the layers point to."""
    macro = f"{name.upper()}_DATA_H"
    lines = [f"extern {constant.declaration};" for constant in constants]
    guard = [f"#ifndef {macro}", f"#define {macro}", "", "#include <stdint.h>", ""]
    return "\n".join([*guard, *lines, "", "#endif", ""])


def data(name: str, constants: Sequence[Constant]) -> str:
    """``model_data.c``: weights, biases and tables."""
    parts = [f'#include "{name}_data.h"']
    for constant in constants:
        values = list(map(str, constant.values.tolist()))
        rows = [values[i : i + _A_LINE] for i in range(0, len(values), _A_LINE)]
        body = ",\n".join(f"    {', '.join(row)}" for row in rows)
        parts.append(f"{constant.declaration} = {{\n{body}\n}};")
    return "\n\n".join([*parts, ""])
