"""Milliseconds of one image in a file, LiteRT's or OpenVINO's, whoever wrote it.

    python -m benchmarks.one_run FILE IMAGE.npy THREADS

Prints one JSON line: the fastest of many runs. With one thread it is the processor's time, which
other work beside does not lengthen; with more it is elapsed time, as those wait for each other.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RUNS = 40
PAUSE = 0.01
"""Seconds of sleep before a run, so that it begins with a whole slice of the processor."""


def openvino_run(file: Path, image: np.ndarray, threads: int) -> Callable[[], object]:
    """For batches of one, without bfloat16; .xml and .onnx."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(image.shape)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])


def litert_run(file: Path, image: np.ndarray, threads: int) -> Callable[[], object]:
    """With XNNPACK; the image goes in channels last, as codes where the file wants codes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    values = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    if detail["dtype"] is np.int8:
        scale, zero_point = detail["quantization"]
        values = np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)

    def run() -> None:
        interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()

    return run


def fastest(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds by ``clock`` of the fastest run, after one that is not counted."""
    run()
    found = float("inf")
    for _ in range(RUNS):
        time.sleep(PAUSE)
        begin = clock()
        run()
        found = min(found, clock() - begin)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("file", type=Path)
    arguments.add_argument("image", type=Path)
    arguments.add_argument("threads", type=int)
    asked = arguments.parse_args()
    opened = litert_run if asked.file.suffix == ".tflite" else openvino_run
    run = opened(asked.file, np.load(asked.image), asked.threads)
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    print(json.dumps({"milliseconds": 1000 * fastest(run, clock)}))


if __name__ == "__main__":
    main()
