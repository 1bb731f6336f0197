"""NNCF's post-training quantization of a float ONNX file, by its OpenVINO backend.

    python -m benchmarks.peers.nncf_openvino FLOAT.onnx INPUTS.npy OUT.xml

Run by the environment ``nncf_openvino``; prints one JSON line.
"""

import argparse
import importlib.metadata
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nncf
import numpy as np
import openvino


def main() -> None:
    """NNCF's defaults, whose preset is that of convolutional networks."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("file", "inputs", "out"):
        arguments.add_argument(name, type=Path)
    asked = arguments.parse_args()
    inputs = np.load(asked.inputs)
    with redirect_stdout(sys.stderr):
        quantized = nncf.quantize(
            openvino.Core().read_model(asked.file),
            nncf.Dataset([inputs[index : index + 1] for index in range(len(inputs))]),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(inputs),
        )
        openvino.save_model(quantized, asked.out, compress_to_fp16=False)
    versions = {name: importlib.metadata.version(name) for name in ("nncf", "openvino")}
    print(json.dumps({"file": str(asked.out), "versions": versions}))


if __name__ == "__main__":
    main()
