"""A model in C, compiled with this machine's compiler: run it, and look at every site's codes.

The folder is compiled into a program of its own process, which reads samples and writes what it
computes; a crash of it, or a sanitizer's complaint, is an error with its words. Real inputs become
codes by the model's own conversions in C.
"""

import json
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import ExportError, RuntimeUnavailableError
from halfstep.formats.c_folder import COST, MANIFEST, SCHEMA
from halfstep.formats.layout import joined
from halfstep.runtimes.c_compiler import STANDARD, compiled, linked, preprocessed

Values = NDArray[np.generic]

_FAST = ("-O3",)
# The time that a model may take, far above what it needs: so much to begin with, and for each
# sample what a core with so many of its estimated cycles a second would take.
_START_SECONDS = 60.0
_CYCLES_PER_SECOND = 50e6
_OF_FLOATS = re.compile(r"\b(?:float|double)\b")
_HARNESS = """\
#include <stdio.h>
#include "{name}.h"

{arrays}

#ifdef HALFSTEP_TRACE
void halfstep_trace(int32_t site, const int8_t *codes, int32_t size)
{{
    (void)site;
    fwrite(codes, 1, (size_t)size, stdout);
}}
#endif

int main(void)
{{
    for (;;) {{
{reads}
        {name}_run({arguments});
{writes}
    }}
}}
"""


class CModel:
    """A folder that ``export`` wrote for a C target, compiled and open for running.

    Args:
        path: the folder.
        sites: names of sites whose codes to return beside the outputs.
        flags: of the compiler, such as those of sanitizers.

    Raises:
        ExportError: the folder is not a complete model in C, lacks a site, or does not compile.
        RuntimeUnavailableError: this machine has no C compiler.
    """

    def __init__(
        self, path: str | Path, sites: Collection[str] = (), flags: Sequence[str] = _FAST
    ) -> None:
        self.path = Path(path)
        self._manifest = _read(self.path / MANIFEST)
        if (found := self._manifest.get("schema")) != SCHEMA:
            raise ExportError(
                f"{self.path / MANIFEST}: asked for schema {SCHEMA}, found {found}; export the "
                "model again"
            )
        self._cycles = _cycles(self.path / COST)
        self.outputs = tuple(output["name"] for output in self._manifest["outputs"])
        known = {site["name"] for site in self._manifest["sites"]}
        missing = [site for site in sites if site not in known | set(self.outputs)]
        if missing:
            raise ExportError(
                f"{self.path}: it has no site {missing[0]}; was it made from this program?"
            )
        self.sites = tuple(site for site in sites if site in known)
        self._traced = self._manifest["sites"] if self.sites else []
        out = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, out, ignore_errors=True)
        self._program = _build(self.path, self._manifest, flags, bool(self.sites), out)

    def run(self, inputs: Sequence[Values]) -> Mapping[str, Values]:
        """Outputs and asked-for sites by name, for inputs in the order of the model.

        Raises:
            ExportError: inputs that the model does not take, or a program that crashes or does not
                end.
        """
        if len(inputs) != self._manifest["takes"]:
            raise ExportError(
                f"{self.path}: asked for {self._manifest['takes']} inputs, found {len(inputs)}"
            )
        ports, n_samples = self._manifest["inputs"], len(inputs[0])
        given = [_in_memory(inputs[port["place"]], port, self.path) for port in ports]
        samples = b"".join(row.tobytes() for i in range(n_samples) for row in (x[i] for x in given))
        done = self._ended(samples, n_samples)
        outputs = [{**port, "type": "float32"} for port in self._manifest["outputs"]]
        kinds = [*self._traced, *outputs]
        sizes = [int(np.prod(k["shape"])) * np.dtype(_stored(k)).itemsize for k in kinds]
        if done.returncode or len(done.stdout) != n_samples * sum(sizes):
            words = " ".join(done.stderr.decode(errors="replace").split())
            raise ExportError(
                f"{self.path}: the compiled model ended with {done.returncode} after "
                f"{len(done.stdout)} of {n_samples * sum(sizes)} bytes: {words[:2000]}"
            )
        table = np.frombuffer(done.stdout, np.uint8).reshape(n_samples, -1)
        columns = np.split(table, np.cumsum(sizes)[:-1], axis=1)
        found = {
            kind["name"]: _logical(column, kind)
            for kind, column in zip(kinds, columns, strict=True)
        }
        return {name: found[name] for name in (*self.outputs, *self.sites)}

    def _ended(self, samples: bytes, n_samples: int) -> "subprocess.CompletedProcess[bytes]":
        """The program, run to its end, or killed when it takes far longer than it can need."""
        limit = _START_SECONDS + n_samples * self._cycles / _CYCLES_PER_SECOND
        try:
            return subprocess.run(
                [str(self._program)], input=samples, capture_output=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"{self.path}: the compiled model did not end: asked for {n_samples} samples "
                f"within {limit:.0f} seconds, found it still running. Was its code changed? Export "
                "it again"
            ) from error

    def constants(self) -> dict[str, Values]:
        """Nothing: the data in C have no names of sites."""
        return {}

    def integer_kernel_of(self, sites: Collection[str]) -> dict[str, bool]:
        """For each site, whether integers make it: whether what is compiled has no float at all."""
        integer = not floats_in(self.path)
        return dict.fromkeys(sites, integer)


def floats_in(folder: Path) -> list[str]:
    """The files whose code, as the compiler sees it without ``HALFSTEP_FLOAT``, has a float."""
    found = []
    for file in sorted(folder.glob("*.c")):
        if not file.name.endswith("_data.c"):
            code = preprocessed(file, STANDARD)
            found += [file.name] if _OF_FLOATS.search(code.decode()) else []
    return found


def code_bytes(folder: Path) -> int:
    """Bytes of code and of layers' descriptions, compiled for this machine with ``-Os``.

    All kernels are counted; a linker that collects unused sections leaves those out that no layer
    calls.

    Raises:
        RuntimeUnavailableError: this machine has no C compiler, or no ``size``.
    """
    size = shutil.which("size")
    if size is None:
        raise RuntimeUnavailableError("measuring code needs the program size: install binutils")
    sources = [file for file in sorted(folder.glob("*.c")) if not file.name.endswith("_data.c")]
    objects = [str(compiled(file, (*STANDARD, "-Os", f"-I{folder}"))) for file in sources]
    done = subprocess.run([size, *objects], capture_output=True, check=True, text=True)
    return sum(int(line.split()[0]) for line in done.stdout.splitlines()[1:])


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file.parent}: not a complete model in C ({error})") from error
    if not isinstance(found, dict):
        raise ExportError(f"{file}: asked for names and values, found a {type(found).__name__}")
    return found


def _cycles(file: Path) -> float:
    """The estimated cycles of one sample."""
    try:
        return float(_read(file)["totals"]["estimated_cycles"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{file}: it says nothing of cycles; export the model again") from error


def _build(
    folder: Path, manifest: dict[str, Any], flags: Sequence[str], traced: bool, out: str
) -> Path:
    """The program that reads samples; objects that other programs share are compiled once."""
    harness = Path(out) / "harness.c"
    harness.write_text(_harness(manifest), encoding="utf-8")
    sources = {source: str(source) for source in sorted(folder.glob("*.c"))}
    sources[harness] = f"{folder}: the program around the model"
    shown = ("-DHALFSTEP_FLOAT", *(["-DHALFSTEP_TRACE"] if traced else []))
    options = (*STANDARD, *flags, f"-I{folder}")
    objects = {}
    for source, name in sources.items():
        own = source == harness or source.name == f"{manifest['name']}.c"
        objects[compiled(source, (*options, *(shown if own else ())), name)] = name
    program = Path(out) / "model"
    linked(objects, (*STANDARD, *flags), program, str(folder))
    return program


def _harness(manifest: dict[str, Any]) -> str:
    """The program around the model: real values (or indices) in, real values out."""
    name = manifest["name"]
    arrays, reads, writes = [], [], []
    for port in manifest["inputs"]:
        variable, size = port["variable"], int(np.prod(port["shape"]))
        arrays.append(f"static {port['type']} {variable}[{size}];")
        into = variable
        if port["type"] == "int8_t":
            into = f"{variable}_real"
            arrays.append(f"static float {into}[{size}];")
        reads.append(f"        if (fread({into}, sizeof {into}, 1, stdin) != 1) {{\n"
                     "            return 0;\n        }")  # fmt: skip
        if into != variable:
            reads.append(f"        {name}_quantize_{variable}({into}, {variable});")
    for port in manifest["outputs"]:
        variable, size = port["variable"], int(np.prod(port["shape"]))
        arrays.append(f"static int8_t {variable}[{size}];\nstatic float {variable}_real[{size}];")
        writes.append(f"        {name}_dequantize_{variable}({variable}, {variable}_real);")
        writes.append(f"        fwrite({variable}_real, sizeof {variable}_real, 1, stdout);")
    variables = [port["variable"] for port in (*manifest["inputs"], *manifest["outputs"])]
    return _HARNESS.format(
        name=name,
        arrays="\n".join(arrays),
        reads="\n".join(reads),
        arguments=", ".join(variables),
        writes="\n".join(writes),
    )


def _in_memory(values: Values, port: dict[str, Any], folder: Path) -> Values:
    """A batch in the model's layout, (samples, values of one)."""
    one = values[:, None] if values.ndim == len(port["shape"]) else values
    if list(one.shape[1:]) != port["shape"]:
        raise ExportError(
            f"{folder}: {port['name']}: asked for samples of shape {port['shape'][1:]}, found "
            f"{list(values.shape[1:])}"
        )
    dtype = np.int32 if port["type"] == "int32_t" else np.float32
    moved = one.transpose(0, *(1 + axis for axis in port["order"]))
    return np.ascontiguousarray(moved.astype(dtype)).reshape(len(values), -1)


def _stored(kind: dict[str, Any]) -> str:
    return "float32" if kind["type"] == "float32" else "int8"


def _logical(column: NDArray[np.uint8], kind: dict[str, Any]) -> Values:
    """Bytes of a site or an output, a row a sample, as an array of its own shape and type."""
    stored = np.ascontiguousarray(column).view(_stored(kind))
    in_memory = [kind["shape"][axis] for axis in kind["order"]]
    values = stored.reshape(len(stored), *in_memory)
    back = np.argsort(kind["order"])
    values = values.transpose(0, *(1 + axis for axis in back))
    if kind["type"] != "float32":
        values = (values.astype(np.int64) + kind["offset"]).astype(kind["type"])
    axis = kind["batch_axis"]
    return values[0] if axis is None else joined(list(values), axis, kind["batch_outer"])
