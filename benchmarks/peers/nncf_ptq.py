"""NNCF's post-training quantization of a float ONNX file, by its ONNX backend.

.../nncf/bin/python -m benchmarks.peers.nncf_ptq FLOAT.onnx CALIBRATION.npy OUT.onnx --images 64
"""

from pathlib import Path

import nncf
import onnx

from benchmarks.peers.calibration import Inputs, batches, parser, report

PRESETS = {
    "performance": nncf.QuantizationPreset.PERFORMANCE,
    "mixed": nncf.QuantizationPreset.MIXED,
}


def quantize(model: Path, inputs: list[Inputs], preset: str, transformer: bool, out: Path) -> None:
    """NNCF's defaults, the preset aside; fast bias correction is one of them."""
    quantized = nncf.quantize(
        onnx.load(model),
        nncf.Dataset(inputs),
        preset=PRESETS[preset],
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    onnx.save(quantized, out)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--preset", choices=PRESETS, default="performance")
    arguments.add_argument("--transformer", action="store_true")
    asked = arguments.parse_args()
    inputs = batches(asked.file, asked.calibration, asked.images, asked.batch)
    report(
        lambda out: quantize(asked.file, inputs, asked.preset, asked.transformer, out),
        asked.out,
        ["nncf", "onnx", "onnxruntime"],
        preset=asked.preset,
        images=asked.images,
    )


if __name__ == "__main__":
    main()
