"""Every recipe on the same networks: what it costs, and what its artifact answers."""

from pathlib import Path
from typing import Any

import halfstep as hs
from benchmarks import images, networks
from benchmarks.accuracy import summary
from benchmarks.cifar10_example import resnet
from benchmarks.formats import in_runtime
from halfstep.quantize import stages

# The options of a recipe where its own would take hours on two cores.
RECIPES: dict[str, dict[str, Any]] = {
    "ptq": {},
    "krishnamoorthi_ptq": {},
    "jacob_int8": {},
    "wu_int8": {},
    "qualcomm_ptq": {"iterations": 500},
    "dfq": {},
    "low_bit": {},
    "best": {},
}
ON_PHOTOS: dict[str, dict[str, Any]] = {
    "ptq": {},
    "jacob_int8": {},
    "krishnamoorthi_ptq": {},
    "qualcomm_ptq": {"rounding": "together", "samples": 128},
    "low_bit": {"samples": 128},
}


def recipes(shared: Path, work: Path) -> list[dict[str, Any]]:
    """W8A8 by every recipe: ResNet-20 with 256 training images, EfficientNet-Lite0 with photos."""
    folder = images.cifar10_folder(work)
    train = images.cifar10(folder, "train", batch=32)[:256]
    test = images.cifar10(folder, "test", batch=500)
    small = resnet.resnet20(shared / "resnet20_cifar10.safetensors")
    photos = images.imagenet(shared, work, batch=16)
    large = networks.build("efficientnet_lite0")
    rows = [
        _row("ResNet-20", small, recipe, train, test, work, options)
        for recipe, options in RECIPES.items()
    ]
    rows += [
        _row("EfficientNet-Lite0", large, recipe, photos[:256], photos, work, options)
        for recipe, options in ON_PHOTOS.items()
    ]
    return rows


def _row(
    network: str,
    model: Any,
    recipe: str,
    data: images.LabelledImages,
    test: images.LabelledImages,
    work: Path,
    options: dict[str, Any],
) -> dict[str, Any]:
    result = hs.quantize(model, data, recipe=recipe, verify_samples=0, **options)
    out = work / "recipes"
    result.save(out)
    file = out / "model.onnx"
    verdict = hs.verify(result.program, file, test[:200], stages=stages(model, result.model))
    return {
        "network": network,
        "recipe": recipe,
        "options": ", ".join(f"{key}={value}" for key, value in options.items()),
        "seconds": sum(record.seconds for record in result.journal.records),
        "floats": len(result.model.plan.floats),
        **summary(verdict),
        "top1": in_runtime(result.program, file, test),
    }
