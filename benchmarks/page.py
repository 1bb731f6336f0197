"""``docs/results.md`` from the measured figures; no figure is written by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def render(results: Mapping[str, Any]) -> str:
    """The whole page; a section that was not measured says so."""
    parts = ["# Results", "", _INTRODUCTION, ""]
    for name, (title, text, columns) in _SECTIONS.items():
        parts += [f"## {title}", "", text, ""]
        if name in results:
            section = results[name]
            parts += [*table(section["rows"], columns), "", _measured(section), ""]
        else:
            parts += ["Not measured yet: `python -m benchmarks " + name + "`.", ""]
    return "\n".join(parts).rstrip() + "\n"


def recipe_page(text: str, recipe: str, results: Mapping[str, Any]) -> str:
    """The page of a recipe with what was measured of it between its two markers."""
    head, _, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not end:
        return text
    rows = [
        {"format": "W8A8", **row}
        for name in ("recipes", "rounding_resnet20", "rounding_efficientnet")
        for row in results.get(name, {}).get("rows", ())
        if row["recipe"] == recipe
    ]
    shown = [*table(rows, _OF_A_RECIPE)]
    encoders = results.get("transformers", {}).get("rows", ())
    if mine := [row for row in encoders if f"`{recipe}`" in row["tool"]]:
        title, text, columns = _SECTIONS["transformers"]
        shown = [*(shown if rows else ()), f"{title}. {text}", "", *table(mine, columns)]
    elif not rows:
        shown = ["Not measured yet."]
    return "\n".join([f"{head}{_BEGIN}", "", *shown, "", f"{_END}{tail}"])


def conformance_page(results: Mapping[str, Any]) -> str:
    """Every network on every target, as far as it was measured."""
    sections = [results[name] for name in ("conformance", "encoders") if name in results]
    lines = ["# Conformance", "", _CONFORMANCE, ""]
    if not sections:
        return "\n".join([*lines, "Not measured yet: `python -m benchmarks conformance`.", ""])
    # A network that both have is that of the later one.
    latest = {row["network"]: section["rows"] for section in sections for row in section["rows"]}
    by_network: dict[str, list[Mapping[str, Any]]] = {}
    for network, rows in latest.items():
        for row in rows:
            if row["network"] == network:
                by_network.setdefault(f"{network} ({row['what']})", []).append(row)
    for network, rows in by_network.items():
        lines += [f"## {network}", "", *table(rows, _OF_A_TARGET), ""]
    return "\n".join([*lines, *map(_measured, sections), ""])


def _measured(section: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    return f"Measured {section['date']} on {section['machine']}, with {listed}."


def table(rows: Rows, columns: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> list[str]:
    """A Markdown table; numbers come formatted from the columns."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return lines


def _get(key: str, form: str = "{}") -> Callable[[Mapping[str, Any]], str]:
    return lambda row: form.format(row[key]) if row.get(key) is not None else ""


def _top1(stage: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row['accuracy'][stage]:.2%}" if stage in row["accuracy"] else ""


def _differ(pair: str) -> Callable[[Mapping[str, Any]], str]:
    """The share of decisions that differ, from the share that agree."""
    return lambda row: f"{1 - row['agreement'][pair]:.2%}" if pair in row["agreement"] else ""


def _verdict(row: Mapping[str, Any]) -> str:
    return (
        f"{row['status']}: {row['mismatches']} of {row['codes']:,} codes, {row['sites']} sites, "
        f"{row['samples']} samples"
    )


def _histogram(side: str) -> Callable[[Mapping[str, Any]], str]:
    """How many sites have how many bits."""
    return lambda row: ", ".join(f"{bits}: {count}" for bits, count in row[side].items())


def _seconds(row: Mapping[str, Any]) -> str:
    steps = row.get("seconds") or {}
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items())


_INTRODUCTION = (
    "Written by `make bench` from what it measured; the data and the peers' environments it needs "
    "are described in `benchmarks/`. Top-1 of *runtime* is what ONNX Runtime answers when it runs "
    "the written file. *Engine* is Halfstep's simulation: the integer program. *Fake-quantized* is "
    "the float graph that training uses. Speeds are ratios taken in one run on two cores that "
    "other work may share."
)

_ACCURACY = {
    "float": _top1("float"),
    "fake-quantized": _top1("fake-quantized"),
    "engine": _top1("engine"),
    "runtime": _top1("runtime"),
}
_CONFORMANCE = (
    "One model on every target, each calibrated (min-max) on 64 samples, encoders on as many as "
    "they say, and compared code for code on them, at every site that the runtime can show and at "
    "the outputs of the file as it will be deployed. *Largest* is the largest distance of two "
    "codes. Sites behind a float kernel are not counted. *Of float* is the time of one sample as a "
    "share of the float model's in the same runtime, from the same exporter; two cores, other work "
    "beside. *Bytes* of C are those of its source text; its `cost.md` says the bytes of its "
    "constants, which the command line shows. What a target refuses, it refuses by name. The "
    "engine's targets (`reference`) have no artifact. Written by `python -m benchmarks conformance "
    "encoders`; one model of your own: `halfstep verify --all-targets`."
)
_OF_A_TARGET = {
    "target": lambda row: f"`{row['target']}`",
    "verdict": lambda row: row.get("status", row["note"]),
    "sites": _get("sites"),
    "codes": _get("codes", "{:,}"),
    "differing": _get("mismatches", "{:,}"),
    "largest": _get("largest"),
    "uncounted sites": _get("uncounted"),
    "integer MACs": _get("coverage", "{:.2%}"),
    "of float": _get("of_float", "{:.2f}"),
    "bytes": _get("bytes", "{:,}"),
    "not on integer kernels": _get("floats"),
}
_BEGIN, _END = "<!-- results:begin -->", "<!-- results:end -->"
_OF_A_RECIPE = {
    "network": _get("network"),
    "format": _get("format"),
    "options": lambda row: row.get("options", ""),
    "top-1 in the runtime": _get("top1", "{:.2%}"),
    "seconds": _get("seconds", "{:.1f}"),
    "verdict": _verdict,
}
_SECTIONS: dict[str, tuple[str, str, dict[str, Callable[[Mapping[str, Any]], str]]]] = {
    "resnet20": (
        "ResNet-20, CIFAR-10, W8A8",
        "Published weights, 256 training images for calibration, the 10,000 test images.",
        {"calibrator": _get("calibrator"), **_ACCURACY}
        | {
            "engine and runtime differ": _differ("runtime and engine"),
            "fake-quantized and engine differ": _differ("fake-quantized and engine"),
            "verdict": _verdict,
            "integer MACs in the runtime": _get("coverage", "{:.2%}"),
        },
    ),
    "peer_simulations": (
        "The same network in the peers",
        "Each tool's simulation against its own deployment, on the same images.",
        {
            "tool": _get("peer"),
            "float": _get("top1_float", "{:.2f}%"),
            "simulated": _get("top1_simulated", "{:.2f}%"),
            "deployed": _get("top1_deployed", "{:.2f}%"),
            "decisions that differ": _get("decisions_that_differ", "{:.2%}"),
            "integer convolutions": _get("integer_convolutions"),
            "versions": lambda row: ", ".join(f"{k} {v}" for k, v in row["versions"].items()),
        },
    ),
    "efficientnet": (
        "EfficientNet-Lite0, W8A8",
        "Real weights; calibrated on every fifth of the 500 photos that it is judged on.",
        {"recipe": _get("recipe"), "calibrator": _get("calibrator"), **_ACCURACY}
        | {"decisions changed from float": _differ("float and engine"), "verdict": _verdict},
    ),
    "formats": (
        "Number formats and published recipes",
        (
            "The networks above; 2,000 of the CIFAR-10 test images, the 500 photos; verdicts on "
            "200 of them. The engine runs what ONNX Runtime has no kernels for."
        ),
        {
            "network": _get("network"),
            "format": _get("format"),
            "ran in": _get("ran"),
            "top-1": _get("top1", "{:.2%}"),
            "verdict": lambda row: _verdict(row) if "status" in row else "",
        },
    ),
    "data_free": (
        "Data-free quantization, step by step",
        (
            "EfficientNet-Lite0, W8A8, one scale a weight unless it says otherwise, no data but in "
            "the last row; judged on the 500 photos, verdicts on 40 of them. *Float* is the "
            "network with what the steps changed, before it is quantized."
        ),
        {
            "steps": _get("method"),
            "float": _get("float", "{:.1%}"),
            "runtime": _get("top1", "{:.1%}"),
            "seconds": _get("seconds", "{:.1f}"),
            "verdict": _verdict,
        },
    ),
    "rescaled": (
        "Channels far apart",
        (
            "ResNet-20 on the 10,000 CIFAR-10 test images, as published and with the channels "
            "inside its blocks moved by factors from 1/64 to 64, which leaves the function as it "
            "is; verdicts on 40 images."
        ),
        {
            "channels": _get("channels"),
            "method": _get("method"),
            "runtime": _get("top1", "{:.2%}"),
            "verdict": _verdict,
        },
    ),
    "rounding_resnet20": (
        "ResNet-20 with few bits",
        (
            "Published weights, 256 training images without labels, the 10,000 test images, of "
            "which 500 are compared code for code. *ptq* "
            "is nearest rounding with min-max weights, *low_bit* rounds the weights of a layer "
            "together. Addends are values that no convolution reads."
        ),
        {
            "format": _get("format"),
            "recipe": _get("recipe"),
            "top-1 in the runtime": _get("top1", "{:.2%}"),
        }
        | {
            "seconds": _get("seconds", "{:.1f}"),
            "of them rounding": _get("rounding", "{:.1f}"),
            "resident growth, MB": _get("megabytes", "{:.0f}"),
            "verdict": _verdict,
        },
    ),
    "rounding_efficientnet": (
        "EfficientNet-Lite0 with 4-bit weights",
        (
            "Real weights, one scale a channel, all layers 4 bits; the first 256 of the 500 photos "
            "without labels, judged on all 500, compared code for code on 500."
        ),
        {
            "format": _get("format"),
            "recipe": _get("recipe"),
            "top-1 in the runtime": _get("top1", "{:.2%}"),
        }
        | {
            "seconds": _get("seconds", "{:.1f}"),
            "of them rounding": _get("rounding", "{:.1f}"),
            "resident growth, MB": _get("megabytes", "{:.0f}"),
            "verdict": _verdict,
        },
    ),
    "rounding_layers": (
        "Fast rounding against AdaRound",
        (
            "Three layers of ResNet-20 with 4-bit weights, all else float, 256 images; squared "
            "error of a layer's output relative to its variance, on 256 other images."
        ),
        {
            "method": _get("method"),
            "seconds for the three": _get("seconds", "{:.1f}"),
            **{
                name: _get(name, "{:.5f}")
                for name in ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1")
            },
        },
    ),
    "mixed_precision": (
        "Mixed precision",
        (
            "EfficientNet-Lite0 with as many bytes of weights as 4 bits everywhere take, and the "
            "bit operations of 5 bits; then for a row of budgets of bit operations. Calibrated on "
            "every second photo, judged in ONNX Runtime on the 250 others. *Predicted* is the sum "
            "of what each site costs alone, in nats. All files hold whole bytes."
        ),
        {
            "allocation": _get("allocation"),
            "weights of bits": _histogram("weights"),
            "activations of bits": _histogram("activations"),
            "weights, kB": lambda row: f"{row['size'] / 1000:,.0f}",
            "GBOPs": lambda row: f"{row['bops'] / 1e9:.2f}",
            "predicted": _get("predicted", "{:.3f}"),
            "top-1": _get("top1", "{:.1%}"),
            "float": lambda row: _top1("float")(row) if "accuracy" in row else "",
            "seconds": _seconds,
            "verdict": lambda row: _verdict(row) if "status" in row else "",
        },
    ),
    "recipes": (
        "Every recipe",
        (
            "W8A8 as each recipe has it. ResNet-20: 256 training images, 10,000 test images; "
            "EfficientNet-Lite0: the first 256 photos, all 500. 200 of them are compared code for "
            "code. *In float* counts operations."
        ),
        {"network": _get("network"), "recipe": _get("recipe"), "options": _get("options")}
        | {
            "top-1 in the runtime": _get("top1", "{:.2%}"),
            "seconds": _get("seconds", "{:.1f}"),
            "integer MACs in the runtime": _get("coverage", "{:.2%}"),
            "in float": _get("floats"),
            "verdict": _verdict,
        },
    ),
    "transformers": (
        "MiniLM in int8",
        (
            "all-MiniLM-L6-v2, 200 sentences of up to 64 tokens; 208 others calibrate. Cosine to "
            "the float embedding, smallest in brackets; *neighbours* is the share of sentences "
            "whose nearest neighbour among the others stays the same. Times are shares of the "
            "float file of the same exporter, one thread, one and 16 sentences. On a CPU without "
            "VNNI weights beyond ±64 run on slower kernels than those of 7 bits."
        ),
        {
            "tool": _get("tool"),
            "cosine": lambda row: f"{row['cosine']:.5f} ({row['worst']:.3f})",
            "neighbours": _get("neighbours", "{:.1%}"),
            "time of float, 1": _get("of_float_1", "{:.2f}"),
            "16": _get("of_float_16", "{:.2f}"),
            "bytes": _get("bytes", "{:,}"),
            "seconds to quantize": _get("seconds", "{:.0f}"),
            "integer MACs in the runtime": _get("coverage", "{:.2%}"),
            "verdict": lambda row: row.get("verdict", ""),
        },
    ),
    "quantization": (
        "Cost of quantization",
        (
            "EfficientNet-Lite0, 256 photos in batches of 16, from capture to the saved folder, "
            "against the float forward pass over the same photos."
        ),
        {
            "calibrator": _get("method"),
            "seconds": _get("seconds", "{:.1f}"),
            "float forward": _get("forward", "{:.1f}"),
            "ratio": _get("ratio", "{:.2f}x"),
            "resident growth, MB": _get("megabytes", "{:.0f}"),
        },
    ),
    "scaling": (
        "Growth with the number of images",
        "The same with the entropy calibrator.",
        {
            "images": _get("images"),
            "seconds": _get("seconds", "{:.1f}"),
            "resident growth, MB": _get("megabytes", "{:.0f}"),
        },
    ),
    "peer_quantization": (
        "Cost of quantization in the peers",
        "The same photos and network, each tool in its own environment.",
        {
            "tool": _get("tool"),
            "method": _get("method"),
            "seconds": _get("seconds", "{:.1f}"),
            "ratio to the float forward pass": _get("ratio", "{:.2f}x"),
            "resident growth, MB": _get("megabytes", "{:.0f}"),
            "versions": lambda row: ", ".join(f"{k} {v}" for k, v in row["versions"].items()),
        },
    ),
    "saturation": (
        "CPUs with and without VNNI",
        (
            "EfficientNet-Lite0, W8A8, calibrated on every fifth of the 500 photos that it is "
            "judged on, on this CPU; one photo, one thread, fastest of 60 interleaved rounds. "
            "*Others on Haswell* is the share of the output codes of 8 photos that are not those "
            "of this CPU under `qemu-x86_64 -cpu Haswell`. Exact kernels are those of the session "
            "option `session.x64quantprecision`."
        ),
        {
            "weights": _get("weights"),
            "top-1": _get("top1", "{:.2%}"),
            "channels repaired": _get("repaired"),
            "squared error of their weights, relative": _get("error"),
            "milliseconds": _get("milliseconds", "{:.2f}"),
            "others on Haswell": _get("differ", "{:.2%}"),
        },
    ),
    "artifacts": (
        "Speed of the artifacts",
        "EfficientNet-Lite0, one image, ONNX Runtime, fastest of 300 in two processes of its own.",
        {
            "artifact": _get("artifact"),
            "threads": _get("threads"),
            "milliseconds": _get("milliseconds", "{:.2f}"),
            "of float": _get("of_float", "{:.2f}"),
            "bytes": _get("bytes", "{:,}"),
        },
    ),
    "runtimes_speed": (
        "Speed in OpenVINO and LiteRT",
        (
            "The same networks from each runtime's own quantizer, 64 photos for calibration. One "
            "image, fastest of 160 in four processes of its own that take turns. *Of float* is the "
            "share of the fastest float file's time, the median process in brackets. With one "
            "thread it is processor time, which other work beside hardly lengthens; with two, "
            "elapsed time: where these are no faster than one, the cores were busy, and the rows "
            "say little. OpenVINO is compiled for a batch of one; *additions fused* is the file "
            "for ONNX Runtime, which OpenVINO does not run exactly. LiteRT runs with XNNPACK, and "
            "codes go into and come out of its integer files."
        ),
        {
            "network": _get("network"),
            "runtime": _get("runtime"),
            "threads": _get("threads"),
            "artifact": lambda row: f"{row['tool']} {row['kind']}",
            "milliseconds": _get("milliseconds", "{:.2f}"),
            "of float": lambda row: f"{row['of_float']:.3f} ({row['median_of_float']:.3f})",
            "bytes": _get("bytes", "{:,}"),
        },
    ),
}
