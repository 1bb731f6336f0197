"""Halfstep: quantize a PyTorch model for the hardware that will run it, and prove it.

The short way::

    import halfstep as hs

    result = hs.quantize(model, batches, target="onnxruntime")
    result.save("out")
    print(result.verdict)

By hand: ``capture``, ``make_plan``, ``prepare``, ``calibrate``, ``lower``, ``export``, ``verify``.
"""

from halfstep import ptq, search
from halfstep.conformance import Conformance, conformance
from halfstep.core.grid import Affine
from halfstep.core.qtype import QType
from halfstep.core.spec import QuantSpec
from halfstep.errors import HalfstepError
from halfstep.export.verb import export
from halfstep.golden.vectors import write_golden
from halfstep.graph.calibrate import calibrate
from halfstep.graph.capture import Graph, capture
from halfstep.graph.insert import QuantizedModel, prepare
from halfstep.graph.plan import Plan
from halfstep.graph.planner import make_plan
from halfstep.lower import lower
from halfstep.pair_repair import repair_pair_sums
from halfstep.program.engine import Engine
from halfstep.program.ir import IntProgram
from halfstep.program.saturation import prove_sums
from halfstep.quantize import quantize
from halfstep.result import Result
from halfstep.scale_repair import repair_scales
from halfstep.search.analyze import analyze
from halfstep.simulate import Simulation, simulate
from halfstep.verdict import Status, Verdict
from halfstep.verify import verify
from halfstep.weights import load_weights

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Conformance",
    "Engine",
    "Graph",
    "HalfstepError",
    "IntProgram",
    "Plan",
    "QType",
    "QuantSpec",
    "QuantizedModel",
    "Result",
    "Simulation",
    "Status",
    "Verdict",
    "analyze",
    "calibrate",
    "capture",
    "conformance",
    "export",
    "load_weights",
    "lower",
    "make_plan",
    "prepare",
    "prove_sums",
    "ptq",
    "quantize",
    "repair_pair_sums",
    "repair_scales",
    "search",
    "simulate",
    "verify",
    "write_golden",
]
