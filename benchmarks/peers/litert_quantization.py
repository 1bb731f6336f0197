"""One of our networks by litert-torch, and in integers by ai-edge-quantizer.

    python -m benchmarks.peers.litert_quantization NETWORK INPUTS.npy FLOAT.tflite INT8.tflite

Run by the environment ``litert``; prints one JSON line. Images go in channels last, as the runtime
wants them.
"""

import argparse
import importlib.metadata
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe

from benchmarks import networks

SIGNATURE, INPUT = "serving_default", "args_0"
PACKAGES = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")


def convert(network: str, image: np.ndarray, out: Path) -> float:
    """Write the float file; the largest difference of its output to torch's."""
    model = networks.build(network)
    channels_last = litert_torch.to_channel_last_io(model, args=[0]).eval()
    converted = litert_torch.convert(channels_last, (torch.from_numpy(image),))
    converted.export(str(out))
    with torch.no_grad():
        wanted = channels_last(torch.from_numpy(image)).numpy()
    return float(np.abs(converted(image) - wanted).max())


def quantize(file: Path, images: list[np.ndarray], out: Path) -> None:
    """The recipe of int8 weights and activations, with its defaults: codes go in and come out."""
    made = quantizer.Quantizer(str(file), recipe.static_wi8_ai8())
    ranges = made.calibrate({SIGNATURE: [{INPUT: image} for image in images]}, num_threads=2)
    made.quantize(ranges).export_model(str(out), overwrite=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("network", choices=networks.NETWORKS)
    for name in ("inputs", "float_out", "out"):
        arguments.add_argument(name, type=Path)
    asked = arguments.parse_args()
    inputs = np.ascontiguousarray(np.load(asked.inputs).transpose(0, 2, 3, 1))
    images = [inputs[index : index + 1] for index in range(len(inputs))]
    with redirect_stdout(sys.stderr):
        difference = convert(asked.network, images[0], asked.float_out)
        quantize(asked.float_out, images, asked.out)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(json.dumps({"file": str(asked.out), "difference": difference, "versions": versions}))


if __name__ == "__main__":
    main()
