"""Time and memory of quantization, and speed of what it makes; peers beside it in the same run."""

import gc
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import halfstep as hs
from benchmarks import images, networks
from benchmarks.measure import resident_growth
from benchmarks.peers import environments
from halfstep.report.latency import interleaved_minimum
from halfstep.runtimes.ort import OnnxRuntimeModel

NETWORK = "efficientnet_lite0"
CALIBRATORS = ("minmax", "ema", "percentile", "entropy", "mse")
BATCH = 16
Row = dict[str, Any]
IMAGES = 256


def quantization(shared: Path, work: Path) -> list[Row]:
    """Capture to saved ONNX on 256 photos, as a multiple of the float forward pass over them."""
    rows = [alone(measured, shared, work, name, IMAGES) for name in CALIBRATORS]
    return [{"tool": "halfstep", **row} for row in rows]


def scaling(shared: Path, work: Path) -> list[Row]:
    """Calibration time and memory for growing numbers of photos."""
    return [alone(measured, shared, work, "entropy", count) for count in (64, 128, 256, 500)]


def alone(function: Callable[..., Row], *arguments: Any) -> Row:
    """What ``function`` returns in a process of its own, whose memory nothing has touched yet."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(shared: Path, work: Path, calibrator: str, count: int) -> Row:
    """One quantization, beside the faster of a forward pass in front of it and one behind it."""
    model = networks.build(NETWORK)
    photos = images.imagenet(shared, work, batch=BATCH)[:count]
    # What is loaded once, whatever is quantized: torch's tracer, the runtime, the exporter.
    quantize(model, photos[:BATCH], "minmax", work / "cost")
    baseline = forward(model, photos)
    seconds, growth = quantize(model, photos, calibrator, work / "cost")
    baseline = min(baseline, forward(model, photos))
    return {
        "method": calibrator,
        "images": count,
        "seconds": seconds,
        "forward": baseline,
        "ratio": seconds / baseline,
        "megabytes": growth,
    }


def forward(model: torch.nn.Module, photos: images.LabelledImages) -> float:
    """Seconds of the float model over the photos, which are prepared inside the time as well."""
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch, _ in photos:
            model(batch)
    return time.perf_counter() - begin


def quantize(
    model: torch.nn.Module, photos: images.LabelledImages, calibrator: str, out: Path
) -> tuple[float, float]:
    """Seconds from capture to the saved folder, and MB of resident growth meanwhile."""
    gc.collect()
    with resident_growth() as resident:
        begin = time.perf_counter()
        hs.quantize(model, photos, calibrator=calibrator, verify_samples=0).save(out)
        seconds = time.perf_counter() - begin
    return seconds, resident.growth


def peer_quantization(shared: Path, work: Path) -> list[dict[str, Any]]:
    """onnxruntime.quantization and NNCF on the same photos, each in its own environment."""
    folder = work / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    float_file, calibration = folder / f"{NETWORK}.onnx", folder / f"{NETWORK}.npy"
    if not float_file.exists():
        environments.run("float_onnx", "benchmarks.float_onnx", NETWORK, float_file)
    photos = images.imagenet(shared, work, batch=BATCH)[:IMAGES]
    np.save(calibration, np.concatenate([batch.numpy() for batch, _ in photos]))
    module = "benchmarks.peers.onnxruntime_quantization"
    rows = []
    for method in ("minmax", "entropy", "percentile"):
        out = folder / f"onnxruntime_{method}.onnx"
        found = environments.run(
            "onnxruntime",
            module,
            float_file,
            calibration,
            out,
            "--images",
            IMAGES,
            "--batch",
            BATCH,
            "--method",
            method,
        )
        rows.append({"tool": "onnxruntime.quantization", "method": method, **found})
    out = folder / f"nncf_{NETWORK}.onnx"
    found = environments.run(
        "nncf",
        "benchmarks.peers.nncf_ptq",
        float_file,
        calibration,
        out,
        "--images",
        IMAGES,
        "--batch",
        BATCH,
    )
    rows.append({"tool": "nncf", "method": "default", **found})
    baseline = forward(networks.build(NETWORK), photos)
    for row in rows:
        del row["file"]
        row.update(forward=baseline, ratio=row["seconds"] / baseline)
    return rows


def artifacts(shared: Path, work: Path) -> list[dict[str, Any]]:
    """Milliseconds of one image: our files, and those that ``peer_quantization`` made."""
    model = networks.build(NETWORK)
    photos = images.imagenet(shared, work, batch=BATCH)[:IMAGES]
    folder = work / "cost"
    hs.quantize(model, photos[:64], verify_samples=0).save(folder)
    float_artifact(model, work / "float.onnx")
    files = {"halfstep int8": folder / "model.onnx", "halfstep float": work / "float.onnx"}
    peers = {"onnxruntime.quantization": "onnxruntime_minmax.onnx", "nncf": f"nncf_{NETWORK}.onnx"}
    made = {name: work / "peers" / file for name, file in peers.items()}
    files |= {name: file for name, file in made.items() if file.exists()}
    x = next(iter(photos))[0][:1].numpy()
    rows = []
    for threads in (1, 2):
        # Threads of other sessions wait actively, and would take the cores that are measured.
        fastest = dict.fromkeys(files, float("inf"))
        for name in (*files, *reversed(files)):
            seconds = alone(fastest_run, files[name], threads, x)["seconds"]
            fastest[name] = min(fastest[name], seconds)
        rows += [
            {"artifact": name, "threads": threads, "milliseconds": 1000 * seconds}
            | {"of_float": seconds / fastest["halfstep float"], "bytes": files[name].stat().st_size}
            for name, seconds in fastest.items()
        ]
    return rows


def fastest_run(file: Path, threads: int, x: NDArray[Any]) -> Row:
    """Seconds of the fastest of many runs of one image."""
    model = OnnxRuntimeModel(file, threads=threads, spin=True)
    return {"seconds": interleaved_minimum({"it": lambda: model.run([x])}, rounds=150)["it"]}


def float_artifact(model: torch.nn.Module, file: Path) -> None:
    """The float model through the same exporter, for the same runtime."""
    graph = hs.capture(model, networks.example(NETWORK))
    plan = hs.make_plan(graph).keep_float("*")
    hs.export(hs.lower(hs.prepare(graph, plan)), file)
