"""ONNX Runtime's static quantization of a float ONNX file: QDQ, uint8 by int8 per channel.

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
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.calibration import Inputs, batches, parser, report

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


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--method", choices=METHODS, default="minmax")
    asked = arguments.parse_args()
    inputs = batches(asked.file, asked.calibration, asked.images, asked.batch)
    report(
        lambda out: quantize(asked.file, inputs, asked.method, out),
        asked.out,
        ["onnxruntime", "onnx"],
        method=asked.method,
        images=asked.images,
    )


if __name__ == "__main__":
    main()
