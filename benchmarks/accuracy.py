"""Accuracy and exactness on real networks: what the artifact decides, and was it foreseen."""

from pathlib import Path
from typing import Any

import halfstep as hs
from benchmarks import images, networks
from benchmarks.cifar10_example import resnet
from benchmarks.peers import environments
from halfstep.quantize import stages

PEERS = ("torchao", "torchao_inductor", "nncf", "aimet")


def resnet20(shared: Path, work: Path) -> list[dict[str, Any]]:
    """ResNet-20 with published weights, W8A8, 256 training images, two calibrators."""
    model = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    folder = images.cifar10_folder(work)
    calibration = images.cifar10(folder, "train", batch=64)[:256]
    test = images.cifar10(folder, "test", batch=500)
    rows = []
    for calibrator in ("mse", "minmax"):
        result = hs.quantize(model, calibration, calibrator=calibrator, verify_samples=0)
        result.save(work / "resnet20")
        verdict = hs.verify(
            result.program,
            work / "resnet20" / "model.onnx",
            test,
            stages=stages(model, result.model),
        )
        rows.append({"network": "ResNet-20", "calibrator": calibrator, **summary(verdict)})
    return rows


def peer_simulations(shared: Path, work: Path) -> list[dict[str, Any]]:
    """The same network in the peers: their simulation against their deployment."""
    folder = images.cifar10_folder(work)
    weights = shared / "resnet20_cifar10.safetensors"
    arguments = ("--cifar10", folder, "--weights", weights, "--work", work / "peers")
    module = "benchmarks.peers.torch_fake_quant"
    return [environments.run(peer.partition("_")[0], module, peer, *arguments) for peer in PEERS]


def efficientnet(shared: Path, work: Path) -> list[dict[str, Any]]:
    """EfficientNet-Lite0, calibrated on every fifth photo, judged on all 500."""
    model = networks.build("efficientnet_lite0")
    photos = images.imagenet(shared, work)
    folder = work / "efficientnet_lite0"
    rows = []
    for recipe, calibrator in (("ptq", "mse"), ("ptq", "minmax"), ("low_bit", "mse")):
        result = hs.quantize(
            model, photos[::5], recipe=recipe, calibrator=calibrator, verify_samples=0
        )
        result.save(folder)
        verdict = hs.verify(
            result.program, folder / "model.onnx", photos, stages=stages(model, result.model)
        )
        row = {"recipe": recipe, "calibrator": calibrator, **summary(verdict)}
        rows.append({"network": "EfficientNet-Lite0", **row})
    return rows


def summary(verdict: hs.Verdict) -> dict[str, Any]:
    """The figures of a verdict that the results page shows."""
    return {
        "status": str(verdict.status),
        "samples": verdict.samples,
        "sites": len(verdict.comparable),
        "uncounted": len(verdict.sites) - len(verdict.comparable),
        "codes": sum(site.compared for site in verdict.comparable),
        "mismatches": verdict.mismatches,
        "coverage": verdict.integer_in_runtime,
        "accuracy": dict(verdict.accuracy),
        "agreement": dict(verdict.agreement),
    }
