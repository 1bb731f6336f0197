"""Every method and every target, as data: the only registry.

The command line, the documentation's index and the conformance tests are generated from this
table. A new method is one file and one line here; so is a new target.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from halfstep.errors import unknown_name


@dataclass(frozen=True)
class Entry:
    """One method or target.

    Attributes:
        family: "calibrator", "quantizer", "recipe" or "target".
        name: as users write it.
        where: ``"module:attribute"`` below ``halfstep``; imported when it is first used.
        summary: one line.
        source: the publication or document that defines it.
    """

    family: str
    name: str
    where: str
    summary: str
    source: str = ""

    def load(self) -> Any:
        """The object itself."""
        module, _, attribute = self.where.partition(":")
        return getattr(import_module(f"halfstep.{module}"), attribute)


_JACOB = "Jacob et al. 2018, arXiv 1712.05877"
_WU = "Wu et al. 2020, arXiv 2004.09602"
_NAGEL = "Nagel et al. 2021, arXiv 2106.08295"
_KRISHNAMOORTHI = "Krishnamoorthi 2018, arXiv 1806.08342"
_DFQ = "Nagel et al. 2019, arXiv 1906.04721"
_ADAROUND = "Nagel et al. 2020, arXiv 2004.10568"
_OWN = "docs/recipes/best.md"
_SMOOTH = "Xiao et al. 2022, arXiv 2211.10438"
_TRT = "TensorRT documentation, quantized types"
_MEASURED = "measured, docs/arithmetic.md"

_FOUND = "quant.calibrators"
_LEARNED = "quant.quantizers"

# fmt: off
CATALOG = (
    Entry("calibrator", "minmax", f"{_FOUND}.minmax:MinMax", "smallest and largest", _WU),
    Entry("calibrator", "ema", f"{_FOUND}.ema:Ema", "moving average of extremes", _JACOB),
    Entry("calibrator", "percentile", f"{_FOUND}.percentile:Percentile", "without tails", _WU),
    Entry("calibrator", "entropy", f"{_FOUND}.entropy:Entropy", "least KL divergence", _WU),
    Entry("calibrator", "mse", f"{_FOUND}.mse:Mse", "least squared error", _NAGEL),
    Entry("calibrator", "unit_interval", f"{_FOUND}.unit_interval:UnitInterval", "[0, 1)", _JACOB),
    Entry("calibrator", "signed_unit_interval",
          f"{_FOUND}.signed_unit_interval:SignedUnitInterval", "[-1, 1)", _MEASURED),
    Entry("quantizer", "ste", f"{_LEARNED}.ste:StraightThrough", "fixed grid", _KRISHNAMOORTHI),
    Entry("recipe", "ptq", "recipes.ptq:ptq", "fold, calibrate, lower", _KRISHNAMOORTHI),
    Entry("recipe", "krishnamoorthi_ptq", "recipes.krishnamoorthi_ptq:krishnamoorthi_ptq",
          "weights per channel, averaged ranges", _KRISHNAMOORTHI),
    Entry("recipe", "jacob_int8", "recipes.jacob_int8:jacob_int8",
          "weights per layer, averaged ranges", _JACOB),
    Entry("recipe", "wu_int8", "recipes.wu_int8:wu_int8", "best of 4 calibrators, rest float", _WU),
    Entry("recipe", "qualcomm_ptq", "recipes.qualcomm_ptq:qualcomm_ptq",
          "equalize, MSE ranges, AdaRound", _NAGEL),
    Entry("recipe", "low_bit", "recipes.low_bit:low_bit",
          "MSE ranges, weights rounded together", _ADAROUND),
    Entry("recipe", "best", "recipes.best:best", "cheapest that keeps accuracy", _OWN),
    Entry("recipe", "transformer_ptq", "recipes.transformer_ptq:transformer_ptq",
          "smoothed, ranges by their influence", _SMOOTH),
    Entry("recipe", "dfq", "recipes.dfq:dfq", "equalized, without data", _DFQ),
    Entry("target", "onnxruntime", "targets.onnxruntime:TARGET", "x86-64 with VNNI", _MEASURED),
    Entry("target", "onnxruntime_any", "targets.onnxruntime_any:TARGET",
          "any x86-64 CPU: pairs of products fit int16", _MEASURED),
    Entry("target", "litert_ref", "targets.litert_ref:TARGET",
          "LiteRT's reference kernels", _MEASURED),
    Entry("target", "litert_xnnpack", "targets.litert_xnnpack:TARGET",
          "LiteRT's default: XNNPACK", _MEASURED),
    Entry("target", "openvino", "targets.openvino:TARGET", "CPUs with AVX-512", _MEASURED),
    Entry("target", "tensorrt", "targets.tensorrt:TARGET", "int8 symmetric, unverified", _TRT),
    Entry("target", "reference", "targets.reference:TARGET", "the engine, 2 to 16 bits", _MEASURED),
    Entry("target", "c99", "targets.c99:TARGET", "bare metal, emulated float rounding", _MEASURED),
    Entry("target", "c99_fixed", "targets.c99_fixed:TARGET", "bare metal, fixed point", _JACOB),
)
# fmt: on


def family(name: str) -> dict[str, Entry]:
    """All entries of a family, by name."""
    return {entry.name: entry for entry in CATALOG if entry.family == name}


def find(family_name: str, name: str) -> Any:
    """The object called ``name`` in a family.

    Raises:
        UnknownNameError: with the nearest names.
    """
    entries = family(family_name)
    if name not in entries:
        raise unknown_name(family_name, name, entries)
    return entries[name].load()
