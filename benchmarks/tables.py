"""The sections of ``docs/results.md``, and the columns of its tables and of the other pages."""

from benchmarks.cells import Cell, differ, get, histogram, seconds, top1, verdict_of

ACCURACY = {
    "float": top1("float"),
    "fake-quantized": top1("fake-quantized"),
    "engine": top1("engine"),
    "runtime": top1("runtime"),
}
OF_A_TARGET = {
    "target": lambda row: f"`{row['target']}`",
    "verdict": lambda row: row.get("status", row["note"]),
    "sites": get("sites"),
    "codes": get("codes", "{:,}"),
    "differing": get("mismatches", "{:,}"),
    "largest": get("largest"),
    "uncounted sites": get("uncounted"),
    "integer MACs": get("coverage", "{:.2%}"),
    "of float": get("of_float", "{:.2f}"),
    "bytes": get("bytes", "{:,}"),
    "not on integer kernels": get("floats"),
}
OF_A_RECIPE = {
    "network": get("network"),
    "format": get("format"),
    "options": lambda row: row.get("options", ""),
    "top-1 in the runtime": get("top1", "{:.2%}"),
    "seconds": get("seconds", "{:.1f}"),
    "verdict": verdict_of,
}
_OF_ROUNDING = {
    "format": get("format"),
    "recipe": get("recipe"),
    "top-1 in the runtime": get("top1", "{:.2%}"),
    "seconds": get("seconds", "{:.1f}"),
    "of them rounding": get("rounding", "{:.1f}"),
    "resident growth, MB": get("megabytes", "{:.0f}"),
    "verdict": verdict_of,
}
SECTIONS: dict[str, tuple[str, str, dict[str, Cell]]] = {
    "resnet20": (
        "ResNet-20, CIFAR-10, W8A8",
        "Published weights, 256 training images for calibration, the 10,000 test images.",
        {"calibrator": get("calibrator"), **ACCURACY}
        | {
            "engine and runtime differ": differ("runtime and engine"),
            "fake-quantized and engine differ": differ("fake-quantized and engine"),
            "verdict": verdict_of,
            "integer MACs in the runtime": get("coverage", "{:.2%}"),
        },
    ),
    "peer_simulations": (
        "The same network in the peers",
        "Each tool's simulation against its own deployment, on the same images.",
        {
            "tool": get("peer"),
            "float": get("top1_float", "{:.2f}%"),
            "simulated": get("top1_simulated", "{:.2f}%"),
            "deployed": get("top1_deployed", "{:.2f}%"),
            "decisions that differ": get("decisions_that_differ", "{:.2%}"),
            "integer convolutions": get("integer_convolutions"),
            "versions": lambda row: ", ".join(f"{k} {v}" for k, v in row["versions"].items()),
        },
    ),
    "efficientnet": (
        "EfficientNet-Lite0, W8A8",
        "Real weights; calibrated on every fifth of the 500 photos that it is judged on.",
        {"recipe": get("recipe"), "calibrator": get("calibrator"), **ACCURACY}
        | {"decisions changed from float": differ("float and engine"), "verdict": verdict_of},
    ),
    "formats": (
        "Number formats and published recipes",
        (
            "The networks above; 2,000 of the CIFAR-10 test images, the 500 photos; verdicts on "
            "200 of them. The engine runs what ONNX Runtime has no kernels for."
        ),
        {
            "network": get("network"),
            "format": get("format"),
            "ran in": get("ran"),
            "top-1": get("top1", "{:.2%}"),
            "verdict": lambda row: verdict_of(row) if "status" in row else "",
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
            "steps": get("method"),
            "float": get("float", "{:.1%}"),
            "runtime": get("top1", "{:.1%}"),
            "seconds": get("seconds", "{:.1f}"),
            "verdict": verdict_of,
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
            "channels": get("channels"),
            "method": get("method"),
            "runtime": get("top1", "{:.2%}"),
            "verdict": verdict_of,
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
        _OF_ROUNDING,
    ),
    "rounding_efficientnet": (
        "EfficientNet-Lite0 with 4-bit weights",
        (
            "Real weights, one scale a channel, all layers 4 bits; the first 256 of the 500 photos "
            "without labels, judged on all 500, compared code for code on 500."
        ),
        _OF_ROUNDING,
    ),
    "rounding_layers": (
        "Fast rounding against AdaRound",
        (
            "Three layers of ResNet-20 with 4-bit weights, all else float, 256 images; squared "
            "error of a layer's output relative to its variance, on 256 other images."
        ),
        {
            "method": get("method"),
            "seconds for the three": get("seconds", "{:.1f}"),
            **{
                name: get(name, "{:.5f}")
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
            "allocation": get("allocation"),
            "weights of bits": histogram("weights"),
            "activations of bits": histogram("activations"),
            "weights, kB": lambda row: f"{row['size'] / 1000:,.0f}",
            "GBOPs": lambda row: f"{row['bops'] / 1e9:.2f}",
            "predicted": get("predicted", "{:.3f}"),
            "top-1": get("top1", "{:.1%}"),
            "float": lambda row: top1("float")(row) if "accuracy" in row else "",
            "seconds": seconds,
            "verdict": lambda row: verdict_of(row) if "status" in row else "",
        },
    ),
    "recipes": (
        "Every recipe",
        (
            "W8A8 as each recipe has it. ResNet-20: 256 training images, 10,000 test images; "
            "EfficientNet-Lite0: the first 256 photos, all 500. 200 of them are compared code for "
            "code. *In float* counts operations."
        ),
        {"network": get("network"), "recipe": get("recipe"), "options": get("options")}
        | {
            "top-1 in the runtime": get("top1", "{:.2%}"),
            "seconds": get("seconds", "{:.1f}"),
            "integer MACs in the runtime": get("coverage", "{:.2%}"),
            "in float": get("floats"),
            "verdict": verdict_of,
        },
    ),
    "transformers": (
        "MiniLM in int8",
        (
            "all-MiniLM-L6-v2, 200 sentences of up to 64 tokens; 208 others calibrate. Cosine to "
            "the float embedding, smallest in brackets; *neighbours* is the share of sentences "
            "whose nearest neighbour among the others stays the same, *by chance* what errors of "
            "that cosine in random directions leave of them. Times are shares of the "
            "float file of the same exporter, one thread, one and 16 sentences. On a CPU without "
            "VNNI weights beyond ±64 run on slower kernels than those of 7 bits."
        ),
        {
            "tool": get("tool"),
            "cosine": lambda row: f"{row['cosine']:.5f} ({row['worst']:.3f})",
            "neighbours": get("neighbours", "{:.1%}"),
            "by chance": lambda row: "{:.1%} ± {:.1%}".format(*row["by_chance"]),
            "time of float, 1": get("of_float_1", "{:.2f}"),
            "16": get("of_float_16", "{:.2f}"),
            "bytes": get("bytes", "{:,}"),
            "seconds to quantize": get("seconds", "{:.0f}"),
            "integer MACs in the runtime": get("coverage", "{:.2%}"),
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
            "calibrator": get("method"),
            "seconds": get("seconds", "{:.1f}"),
            "float forward": get("forward", "{:.1f}"),
            "ratio": get("ratio", "{:.2f}x"),
            "resident growth, MB": get("megabytes", "{:.0f}"),
        },
    ),
    "scaling": (
        "Growth with the number of images",
        "The same with the entropy calibrator.",
        {
            "images": get("images"),
            "seconds": get("seconds", "{:.1f}"),
            "resident growth, MB": get("megabytes", "{:.0f}"),
        },
    ),
    "peer_quantization": (
        "Cost of quantization in the peers",
        "The same photos and network, each tool in its own environment.",
        {
            "tool": get("tool"),
            "method": get("method"),
            "seconds": get("seconds", "{:.1f}"),
            "ratio to the float forward pass": get("ratio", "{:.2f}x"),
            "resident growth, MB": get("megabytes", "{:.0f}"),
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
            "weights": get("weights"),
            "top-1": get("top1", "{:.2%}"),
            "channels repaired": get("repaired"),
            "squared error of their weights, relative": get("error"),
            "milliseconds": get("milliseconds", "{:.2f}"),
            "others on Haswell": get("differ", "{:.2%}"),
        },
    ),
    "artifacts": (
        "Speed of the artifacts",
        "EfficientNet-Lite0, one image, ONNX Runtime, fastest of 300 in two processes of its own.",
        {
            "artifact": get("artifact"),
            "threads": get("threads"),
            "milliseconds": get("milliseconds", "{:.2f}"),
            "of float": get("of_float", "{:.2f}"),
            "bytes": get("bytes", "{:,}"),
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
            "network": get("network"),
            "runtime": get("runtime"),
            "threads": get("threads"),
            "artifact": lambda row: f"{row['tool']} {row['kind']}",
            "milliseconds": get("milliseconds", "{:.2f}"),
            "of float": lambda row: f"{row['of_float']:.3f} ({row['median_of_float']:.3f})",
            "bytes": get("bytes", "{:,}"),
        },
    ),
}
