"""Measure everything that ``docs/results.md`` states, and write that page.

    python -m benchmarks --shared FOLDER [SECTION ...]

FOLDER holds ``resnet20_cifar10.safetensors`` and ``imagenet500/``. The figures of each section
are kept in ``benchmarks/results.json``, so that one can be measured again alone; the page is
written after each.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from benchmarks import (
    accuracy,
    conformance,
    cost,
    data_free,
    formats,
    mixed_precision,
    page,
    recipes,
    rounding,
    runtimes_speed,
    saturation,
    transformers,
)
from halfstep.files import write_atomically
from halfstep.result import versions

REPOSITORY = Path(__file__).parents[1]
WORK = REPOSITORY / "benchmarks" / ".work"
SECTIONS = {
    "resnet20": accuracy.resnet20,
    "peer_simulations": accuracy.peer_simulations,
    "efficientnet": accuracy.efficientnet,
    "conformance": conformance.conformance,
    "encoders": conformance.encoders,
    "formats": formats.formats,
    "data_free": data_free.data_free,
    "rescaled": data_free.rescaled,
    "rounding_resnet20": rounding.rounding_resnet20,
    "rounding_efficientnet": rounding.rounding_efficientnet,
    "rounding_layers": rounding.rounding_layers,
    "recipes": recipes.recipes,
    "transformers": transformers.transformers,
    "saturation": saturation.saturation,
    "mixed_precision": mixed_precision.mixed_precision,
    "quantization": cost.quantization,
    "scaling": cost.scaling,
    "peer_quantization": cost.peer_quantization,
    "artifacts": cost.artifacts,
    "runtimes_speed": runtimes_speed.runtimes_speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default all")
    default = os.environ.get("HALFSTEP_DATA", REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder of data")
    asked = parser.parse_args()
    if unknown := set(asked.sections) - SECTIONS.keys():
        parser.error(f"unknown section {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    if not (asked.shared / "imagenet500").is_dir():
        parser.error(f"--shared {asked.shared}: it has no folder imagenet500")
    store = REPOSITORY / "benchmarks" / "results.json"
    WORK.mkdir(parents=True, exist_ok=True)
    results = json.loads(store.read_text()) if store.exists() else {}
    for name in asked.sections or SECTIONS:
        begin = time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = SECTIONS[name](asked.shared, WORK)
        results[name] = {
            "date": str(date.today()),
            "machine": processor(),
            "versions": versions(),
            "rows": rows,
        }
        write_atomically(store, json.dumps(results, indent=1).encode())
        text = page.render(results)
        write_atomically(REPOSITORY / "docs" / "results.md", text.encode())
        write_atomically(
            REPOSITORY / "docs" / "conformance.md", page.conformance_page(results).encode()
        )
        for file in sorted((REPOSITORY / "docs" / "recipes").glob("*.md")):
            filled = page.recipe_page(file.read_text(), file.stem, results)
            write_atomically(file, filled.encode())
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def processor() -> str:
    """The CPU's name and number of cores, as Linux gives them."""
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    lines = dict(line.split(":", 1) for line in listed.splitlines() if ":" in line)
    flags = lines.get("Flags", "")
    vnni = "AVX512-VNNI" if "avx512_vnni" in flags else "VNNI" if "vnni" in flags else "no VNNI"
    return f"{lines.get('Model name', 'unknown').strip()}, {os.cpu_count()} cores, {vnni}"


if __name__ == "__main__":
    main()
