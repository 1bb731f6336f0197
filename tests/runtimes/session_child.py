"""Run the files of a folder in ONNX Runtime and write what they give: a process of its own.

``haswell.py`` starts it, on this CPU or under an emulator of another. It imports little, because
under emulation every import counts.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    for index, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for name, value in job["options"].items():
            options.add_session_config_entry(name, value)
        session = onnxruntime.InferenceSession(
            str(folder / f"{index}.onnx"), options, ["CPUExecutionProvider"]
        )
        names = job["outputs"] or [value.name for value in session.get_outputs()]
        found = {}
        with np.load(folder / f"{index}.in.npz") as stored:
            for batch in range(job["batches"]):
                prefix = f"{batch}/"
                inputs = {
                    key.removeprefix(prefix): stored[key]
                    for key in stored.files
                    if key.startswith(prefix)
                }
                values = session.run(names, inputs)
                found |= {prefix + n: v for n, v in zip(names, values, strict=True)}
        np.savez(folder / f"{index}.out.npz", **found)


main(Path(sys.argv[1]))
