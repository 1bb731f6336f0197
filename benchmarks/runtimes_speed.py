"""Speed of our files in LiteRT and OpenVINO, beside what those runtimes' own quantizers write.

The networks and the photos are the same, and so are runtime, options and machine. Each file runs
in processes of its own, which take turns with those of the other files.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import halfstep as hs
from benchmarks import images, networks
from benchmarks.peers import environments
from halfstep.export import onnx_qdq
from halfstep.program.ir import IntProgram

NETWORKS = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
IMAGES, BATCH = 64, 16
TURNS = 4
"""Processes a file; every other turn the files run in reverse order."""
OURS = "halfstep"

# What a file is: its tool and its kind.
Artifact = tuple[str, str]


def runtimes_speed(shared: Path, work: Path) -> list[dict[str, Any]]:
    """Milliseconds of one image for every file, and its share of the fastest float file's."""
    folder = work / "runtimes_speed"
    folder.mkdir(parents=True, exist_ok=True)
    photos = images.imagenet(shared, work, batch=BATCH)[:IMAGES]
    calibration, image = folder / "calibration.npy", folder / "image.npy"
    inputs = np.concatenate([batch.numpy() for batch, _ in photos])
    np.save(calibration, inputs)
    np.save(image, inputs[:1])
    rows = []
    for network, title in NETWORKS.items():
        model = networks.build(network)
        for runtime, files in (
            ("OpenVINO", openvino_files(network, model, photos, calibration, folder)),
            ("LiteRT", litert_files(network, model, photos, calibration, folder)),
        ):
            for threads in (1, 2):
                measured = timed(files, image, threads)
                rows += [{"network": title, "runtime": runtime, **row} for row in measured]
                print(*rows[-len(measured) :], sep="\n", flush=True)
    return rows


def openvino_files(
    network: str,
    model: torch.nn.Module,
    photos: images.LabelledImages,
    calibration: Path,
    folder: Path,
) -> dict[Artifact, Path]:
    """Ours, with and without what keeps additions exact, and those of torch's exporter and NNCF."""
    own = {kind: folder / f"{network}_{kind}.onnx" for kind in ("float", "int8")}
    program = export(model, photos, "openvino", own)
    fused = folder / f"{network}_fused.onnx"
    onnx_qdq.export(program, fused)
    exported, quantized = folder / f"{network}.onnx", folder / f"{network}_nncf.xml"
    environments.run("float_onnx", "benchmarks.float_onnx", network, exported)
    module = "benchmarks.peers.nncf_openvino"
    found = environments.run("nncf_openvino", module, exported, calibration, quantized)
    return {
        (OURS, "float"): own["float"],
        ("torch.onnx", "float"): exported,
        (OURS, "int8"): own["int8"],
        (OURS, "int8, additions fused"): fused,
        (f"nncf {found['versions']['nncf']}", "int8"): quantized,
    }


def litert_files(
    network: str,
    model: torch.nn.Module,
    photos: images.LabelledImages,
    calibration: Path,
    folder: Path,
) -> dict[Artifact, Path]:
    """Ours, and those of litert-torch and ai-edge-quantizer; codes go into integer files."""
    own = {kind: folder / f"{network}_{kind}.tflite" for kind in ("float", "int8")}
    export(model, photos, "litert_xnnpack", own, io="int8")
    peer = {kind: folder / f"{network}_peer_{kind}.tflite" for kind in ("float", "int8")}
    module = "benchmarks.peers.litert_quantization"
    found = environments.run("litert", module, network, calibration, peer["float"], peer["int8"])
    versions = found["versions"]
    return {
        (OURS, "float"): own["float"],
        (f"litert-torch {versions['litert-torch']}", "float"): peer["float"],
        (OURS, "int8"): own["int8"],
        (f"ai-edge-quantizer {versions['ai-edge-quantizer']}", "int8"): peer["int8"],
    }


def export(
    model: torch.nn.Module,
    photos: images.LabelledImages,
    target: str,
    files: dict[str, Path],
    **options: Any,
) -> IntProgram:
    """The model for ``target``, in float and in int8; ``options`` are those of the int8 file."""
    result = hs.quantize(model, photos, target=target, verify_samples=0)
    hs.export(result.program, files["int8"], **options)
    graph = result.model.graph
    plan = hs.make_plan(graph, target).keep_float("*", "the float model")
    hs.export(hs.lower(hs.prepare(graph, plan)), files["float"])
    return result.program


def timed(files: dict[Artifact, Path], image: Path, threads: int) -> list[dict[str, Any]]:
    """A row a file: the fastest process, its share of float, and how far processes are apart."""
    found: dict[Artifact, list[float]] = {name: [] for name in files}
    for turn in range(TURNS):
        for name in list(files)[:: -1 if turn % 2 else 1]:
            found[name].append(milliseconds(files[name], image, threads))
    reference = min(min(found[name]) for name in files if name[1] == "float")
    return [
        {
            "tool": name[0],
            "kind": name[1],
            "threads": threads,
            "milliseconds": min(times),
            "of_float": min(times) / reference,
            "median_of_float": float(np.median(times)) / reference,
            "bytes": size(files[name]),
        }
        for name, times in found.items()
    ]


def milliseconds(file: Path, image: Path, threads: int) -> float:
    """Of one image, in a process of its own that loads the runtime alone."""
    command = [sys.executable, "-m", "benchmarks.one_run", file, image, threads]
    done = subprocess.run(
        [*map(str, command)], check=True, cwd=environments.REPOSITORY, stdout=subprocess.PIPE
    )
    return float(json.loads(done.stdout.splitlines()[-1])["milliseconds"])


def size(file: Path) -> int:
    """Bytes of a file, with those of the weights beside an .xml."""
    parts = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(part.stat().st_size for part in parts)
