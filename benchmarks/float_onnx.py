"""Export one of our networks as a float ONNX file, which is where the peers begin.

    python -m benchmarks.float_onnx NETWORK FILE.onnx

Run by the environment ``float_onnx``, which has the exporter's onnxscript; prints one JSON line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks import networks


def export(network: str, file: Path, opset: int) -> float:
    """Write ``file`` with a dynamic batch; the largest difference to torch on three examples."""
    model = networks.build(network)
    inputs = networks.example(network, 2)
    batch = torch.export.Dim("batch")
    part = file.with_suffix(".part.onnx")
    torch.onnx.export(
        model,
        inputs,
        part,
        dynamo=True,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    difference = difference_to_torch(model, networks.example(network, 3), part)
    part.replace(file)
    return difference


def difference_to_torch(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], file: Path
) -> float:
    """The largest absolute difference of the file's output in ONNX Runtime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    with torch.no_grad():
        return float(np.abs(session.run(None, arrays)[0] - model(*inputs).numpy()).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=networks.NETWORKS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--opset", type=int, default=18)
    asked = parser.parse_args()
    difference = export(asked.network, asked.file, asked.opset)
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps({"file": str(asked.file), "difference": difference, "versions": versions}))


if __name__ == "__main__":
    main()
