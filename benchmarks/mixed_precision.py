"""Mixed precision: bits where they pay, within the size of 4-bit weights and a budget of BOPs."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.formats import in_runtime
from halfstep import search
from halfstep.graph.edit import with_biases
from halfstep.quantize import stages

RANGES, MEASURED = 128, 64
"""Photos that ranges and costs of bits are found on; rounding has all that calibrate."""

LEFT_BY_ROUNDING = 0.25
"""About the share of the error of nearest rounding that is left."""

POINTS = 7
FILE = "mixed_precision.onnx"


def mixed_precision(shared: Path, work: Path) -> list[dict[str, Any]]:
    """EfficientNet-Lite0: 4 bits everywhere, bits where they pay, and these for many budgets.

    Every second photo is there to calibrate on; accuracy is that of the others, in ONNX Runtime.
    """
    photos = images.imagenet(shared, work, batch=16)
    calibration, test = photos[::2], photos[1::2]
    model = networks.build("efficientnet_lite0")
    graph = with_biases(hs.capture(model, next(iter(photos))[0]))
    choices = {"weights": "int4", "activations": "uint4", "weight_calibrator": "mse"}
    prepared = hs.prepare(graph, hs.make_plan(graph, **choices))
    begin = time.perf_counter()
    watched = search.observe(prepared, calibration[:RANGES])
    grids = search.candidate_grids(prepared, watched)
    costs = search.fisher_costs(prepared, grids, calibration[:MEASURED])
    seconds = {"costs of bits": time.perf_counter() - begin}
    four, five = (search.uniform(prepared, bits, bits) for bits in (4, 5))
    limits = {"size": four.size, "bops": five.bops}
    begin = time.perf_counter()
    mixed = search.allocate(prepared, costs, **limits)
    seconds["allocation"] = time.perf_counter() - begin
    curve = search.pareto(prepared, costs, points=POINTS, size=four.size)
    named = {"uniform W4A4": search.allocate(prepared, _of_four_bits(costs)), "mixed": mixed}
    named |= {f"curve, {i} of {len(curve.points)}": p for i, p in enumerate(curve.points, 1)}
    rows = []
    for name, found in named.items():
        quantized = search.allocated(prepared, found, grids)
        rows.append({"allocation": name, **_described(found), **_ran(quantized, test, work)})
    begin = time.perf_counter()
    mixed = search.allocate(prepared, costs.scaled(weights=LEFT_BY_ROUNDING), **limits)
    quantized = search.allocated(prepared, mixed, grids)
    # Noise of coarse activations would only pull the weights towards zero.
    fine = {site: grids[site][8] for site in mixed.activations}
    with search.applied(quantized, fine):
        hs.ptq.round_weights(quantized, calibration)
    seconds["rounding"] = time.perf_counter() - begin
    row = {"allocation": "mixed, rounded", **_described(mixed), **_ran(quantized, test, work)}
    verdict = hs.verify(hs.lower(quantized), work / FILE, test, stages=stages(model, quantized))
    rows.insert(2, {**row, **summary(verdict), "seconds": seconds})
    return rows


def _of_four_bits(costs: search.BitCosts) -> search.BitCosts:
    """The costs of the candidates of 4 bits alone."""
    sides = (costs.weights, costs.activations)
    return search.BitCosts(
        costs.measure, *({s: {4: c[4]} for s, c in side.items()} for side in sides)
    )


def _described(found: search.Allocation) -> dict[str, Any]:
    return {
        "weights": dict(sorted(Counter(found.weights.values()).items())),
        "activations": dict(sorted(Counter(found.activations.values()).items())),
        "size": found.usage.size,
        "bops": found.usage.bops,
        "predicted": found.predicted,
    }


def _ran(model: hs.QuantizedModel, test: images.LabelledImages, work: Path) -> dict[str, Any]:
    """Top-1 of the written file in ONNX Runtime."""
    program = hs.lower(model)
    hs.export(program, work / FILE)
    return {"top1": in_runtime(program, work / FILE, test)}
