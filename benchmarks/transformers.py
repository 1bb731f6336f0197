"""MiniLM in int8: how close its embeddings stay, whether neighbours stay neighbours, how fast.

200 sentences are judged, the others of ``sentences.txt`` calibrate. What counts is what ONNX
Runtime answers on the written file.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import halfstep as hs
from benchmarks import networks
from benchmarks.peers import environments
from halfstep.report.latency import interleaved_minimum
from halfstep.runtimes.ort import OnnxRuntimeModel

NETWORK = "minilm"
JUDGED = 200
CALIBRATED = 208
BATCH = 16
ROUNDS = 15
Batch = tuple[Tensor, Tensor]
# Our own files, by label: what ``hs.quantize`` is asked for.
OURS: dict[str, dict[str, Any]] = {
    "`ptq`": {},
    "`transformer_ptq`": {"recipe": "transformer_ptq"},
    "`transformer_ptq`, weights of 7 bits": {
        "recipe": "transformer_ptq",
        "weights": "int7_narrow",
    },
}
PEERS = {
    "onnxruntime static": ("onnxruntime", "onnxruntime_quantization", ("--method", "minmax")),
    "onnxruntime dynamic": ("onnxruntime", "onnxruntime_quantization", ("--method", "dynamic")),
    "NNCF": ("nncf", "nncf_ptq", ()),
    "NNCF, transformer": ("nncf", "nncf_ptq", ("--transformer",)),
}


def transformers(shared: Path, work: Path) -> list[dict[str, Any]]:
    """Every file beside its float one: what the tool got, or what our exporter makes of it."""
    del shared
    folder = work / "transformers"
    folder.mkdir(parents=True, exist_ok=True)
    model = networks.build(NETWORK)
    judged, calibration = sentences(0, JUDGED), sentences(JUDGED, CALIBRATED)
    with torch.inference_mode():
        wanted = torch.cat([model(*batch) for batch in judged]).numpy()
    rows, files = [], {"halfstep float": folder / "float.onnx"}
    float_file(model, files["halfstep float"])
    for label, choices in OURS.items():
        begin = time.perf_counter()
        result = hs.quantize(model, calibration, verify_samples=0, **choices)
        seconds = time.perf_counter() - begin
        out = folder / f"{len(files)}"
        result.save(out)
        files[label] = out / "model.onnx"
        verdict = hs.verify(result.program, files[label], judged)
        rows.append(
            {"tool": f"halfstep {label}", "file": label, "seconds": seconds}
            | {"verdict": verdict_of(verdict), "coverage": verdict.integer_in_runtime}
        )
    rows += peers(folder, calibration, files)
    for row in rows:
        row.update(closeness(wanted, embeddings(files[row["file"]], judged)))
        row["by_chance"] = by_chance(wanted, row["cosine"])
        row["bytes"] = files[row["file"]].stat().st_size
    speeds(rows, files, judged[0])
    return rows


def sentences(first: int, count: int) -> list[Batch]:
    """``count`` sentences in batches, from line ``first`` on."""
    return [
        networks.tokenized_sentences(min(BATCH, first + count - start), start)
        for start in range(first, first + count, BATCH)
    ]


def float_file(model: torch.nn.Module, file: Path) -> None:
    """The float model through our exporter."""
    graph = hs.capture(model, networks.example(NETWORK))
    hs.export(hs.lower(hs.prepare(graph, hs.make_plan(graph).keep_float("*"))), file)


def verdict_of(verdict: hs.Verdict) -> str:
    """One line."""
    return str(verdict).splitlines()[0]


def peers(
    folder: Path, calibration: Sequence[Batch], files: dict[str, Path]
) -> list[dict[str, Any]]:
    """The files of the peers, made in their own environments from torch's float file."""
    files["torch float"] = folder / "torch.onnx"
    if not files["torch float"].exists():
        environments.run("float_onnx", "benchmarks.float_onnx", NETWORK, files["torch float"])
    inputs = [torch.cat(parts).numpy() for parts in zip(*calibration, strict=True)]
    session = OnnxRuntimeModel(files["torch float"]).session
    names = [value.name for value in session.get_inputs()]
    np.savez(folder / "calibration.npz", **dict(zip(names, inputs, strict=True)))
    rows = []
    for label, (environment, module, options) in PEERS.items():
        files[label] = folder / f"{label.replace(', ', '_').replace(' ', '_')}.onnx"
        found = environments.run(
            environment,
            f"benchmarks.peers.{module}",
            files["torch float"],
            folder / "calibration.npz",
            files[label],
            "--images",
            CALIBRATED,
            "--batch",
            BATCH,
            *options,
        )
        rows.append({"tool": label, "file": label, "seconds": found["seconds"]})
    return rows


def embeddings(file: Path, batches: Sequence[Batch]) -> NDArray[np.float32]:
    """What ONNX Runtime answers, (sentences, 384)."""
    model = OnnxRuntimeModel(file)
    found = [model.run([value.numpy() for value in batch]) for batch in batches]
    return np.concatenate([next(iter(outputs.values())) for outputs in found])


def closeness(wanted: NDArray[Any], found: NDArray[Any]) -> dict[str, float]:
    """Mean and smallest cosine, and the share of sentences with the same nearest neighbour."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wanted, found))
    cosines = (a * b).sum(axis=1)
    mine, other = (neighbours(x) for x in (a, b))
    return {
        "cosine": float(cosines.mean()),
        "worst": float(cosines.min()),
        "neighbours": float((mine == other).mean()),
    }


def by_chance(wanted: NDArray[Any], cosine: float) -> tuple[float, float]:
    """Mean and deviation of the share of neighbours that random errors of this size leave.

    Sentences that are far from all others have neighbours that nearly tie, so that the share says
    little of errors that are small: 50 draws of errors in random directions, all of one size.
    """
    generator, shares = np.random.default_rng(0), []
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    mine, size = neighbours(unit), np.sqrt(1 / cosine**2 - 1)
    for _ in range(50):
        error = generator.standard_normal(unit.shape)
        error -= (error * unit).sum(axis=1, keepdims=True) * unit
        moved = unit + size * error / np.linalg.norm(error, axis=1, keepdims=True)
        shares.append(
            (neighbours(moved / np.linalg.norm(moved, axis=1, keepdims=True)) == mine).mean()
        )
    return float(np.mean(shares)), float(np.std(shares))


def neighbours(unit: NDArray[Any]) -> NDArray[Any]:
    """For each row of unit length, the other row that is nearest."""
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -1)
    nearest: NDArray[Any] = similarity.argmax(axis=1)
    return nearest


def speeds(rows: list[dict[str, Any]], files: Mapping[str, Path], batch: Batch) -> None:
    """The time of each file as a share of its float file's, for one sentence and for a batch."""
    for count in (1, BATCH):
        inputs = [value[:count].numpy() for value in batch]
        models = {name: OnnxRuntimeModel(f, threads=1, spin=True) for name, f in files.items()}
        runs = {name: partial(model.run, inputs) for name, model in models.items()}
        fastest = interleaved_minimum(runs, ROUNDS)
        for row in rows:
            base = "halfstep float" if row["file"] in OURS else "torch float"
            row[f"of_float_{count}"] = fastest[row["file"]] / fastest[base]
            row[f"ms_{count}"] = 1000 * fastest[row["file"]]
