"""What quantization costs where: sensitivity, partial quantization, mixed precision, analysis.

Everything here looks at a prepared or calibrated ``QuantizedModel``, leaves it as it was, and
returns a frozen report or another ``Plan``.
"""

from halfstep.graph.calibrate import observe
from halfstep.search.allocate import Allocation, Usage, allocate, allocated, uniform
from halfstep.search.analyze import Analysis, analyze
from halfstep.search.bit_costs import BitCosts, bit_costs
from halfstep.search.candidates import candidate_grids
from halfstep.search.fisher import fisher_costs
from halfstep.search.pareto import ParetoCurve, pareto
from halfstep.search.partial import PartialQuantization, partially_quantize
from halfstep.search.ranges import RangeHealth, range_health
from halfstep.search.sensitivity import (
    SensitivityReport,
    quantizer_sensitivity,
    sensitivity,
)
from halfstep.search.sqnr import SqnrReport, sqnr
from halfstep.search.traces import Traces, hessian_traces, trace_costs

__all__ = [
    "Allocation",
    "Analysis",
    "BitCosts",
    "ParetoCurve",
    "PartialQuantization",
    "RangeHealth",
    "SensitivityReport",
    "SqnrReport",
    "Traces",
    "Usage",
    "allocate",
    "allocated",
    "analyze",
    "bit_costs",
    "candidate_grids",
    "fisher_costs",
    "hessian_traces",
    "observe",
    "pareto",
    "partially_quantize",
    "quantizer_sensitivity",
    "range_health",
    "sensitivity",
    "sqnr",
    "trace_costs",
    "uniform",
]
