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
from halfstep.search.float_price import FloatPrices, float_prices, left_float
from halfstep.search.output_ranges import OutputRanges, output_ranges
from halfstep.search.pareto import ParetoCurve, pareto
from halfstep.search.partial import PartialQuantization, partially_quantize
from halfstep.search.ranges import RangeHealth, range_health
from halfstep.search.sensitivity import (
    SensitivityReport,
    quantizer_sensitivity,
    sensitivity,
)
from halfstep.search.sqnr import SqnrReport, sqnr
from halfstep.search.states import applied
from halfstep.search.traces import Traces, hessian_traces, trace_costs

__all__ = [
    "Allocation",
    "Analysis",
    "BitCosts",
    "FloatPrices",
    "OutputRanges",
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
    "applied",
    "bit_costs",
    "candidate_grids",
    "fisher_costs",
    "float_prices",
    "hessian_traces",
    "left_float",
    "observe",
    "output_ranges",
    "pareto",
    "partially_quantize",
    "quantizer_sensitivity",
    "range_health",
    "sensitivity",
    "sqnr",
    "trace_costs",
    "uniform",
]
