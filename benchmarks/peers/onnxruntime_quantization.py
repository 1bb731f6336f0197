"""ONNX Runtime's quantization of a float ONNX file: QDQ, uint8 by int8 per channel; or dynamic.

    python -m benchmarks.peers.onnxruntime_quantization FLOAT.onnx INPUTS.npy INT8.onnx --images 64

Run by the environment ``onnxruntime``.
"""

import tempfile
from pathlib import Path

from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.calibration import Inputs, batches, parser, report

DYNAMIC = "dynamic"
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):
    """Hands out the batches once, then None."""

    def __init__(self, inputs: list[Inputs]) -> None:
        self.rest = iter(inputs)

    def get_next(self) -> Inputs | None:
        return next(self.rest, None)


def quantize(model: Path, inputs: list[Inputs], method: str, out: Path) -> None:
    """Pre-process (shapes, fusions), calibrate, quantize."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared)
        quantize_static(
            prepared,
            out,
            Reader(inputs),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=METHODS[method],
        )


def quantize_at_run_time(model: Path, out: Path) -> None:
    """Weights alone; the scales of activations are found when the model runs."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared)
        quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--method", choices=[*METHODS, DYNAMIC], default="minmax")
    asked = arguments.parse_args()
    inputs = batches(asked.file, asked.calibration, asked.images, asked.batch)

    def run(out: Path) -> None:
        if asked.method == DYNAMIC:
            quantize_at_run_time(asked.file, out)
        else:
            quantize(asked.file, inputs, asked.method, out)

    report(
        run,
        asked.out,
        ["onnxruntime", "onnx"],
        method=asked.method,
        images=asked.images,
    )


if __name__ == "__main__":
    main()
