"""Methods that change a trained model so that it survives quantization; no training loop.

Those that keep the float function take a ``Graph`` and give a new one with a report; those that
fit weights and biases to the grids take a calibrated ``QuantizedModel``, change it in place and
give a report.
"""

from halfstep.ptq.absorb_bias import absorb_bias
from halfstep.ptq.adaround import adaround
from halfstep.ptq.batchnorm_ranges import set_batchnorm_ranges
from halfstep.ptq.clip_weights import clip_weights
from halfstep.ptq.correct_bias import correct_bias
from halfstep.ptq.correct_bias_from_data import correct_bias_from_data
from halfstep.ptq.correct_layer_norms import correct_layer_norms
from halfstep.ptq.cross_entropy_range import cross_entropy_range
from halfstep.ptq.distill_data import distill_data
from halfstep.ptq.equalize import equalize
from halfstep.ptq.guide_ranges import guide_ranges
from halfstep.ptq.round_weights import round_weights
from halfstep.ptq.sequential_mse import sequential_mse
from halfstep.ptq.smooth import smooth

__all__ = [
    "absorb_bias",
    "adaround",
    "clip_weights",
    "correct_bias",
    "correct_bias_from_data",
    "correct_layer_norms",
    "cross_entropy_range",
    "distill_data",
    "equalize",
    "guide_ranges",
    "round_weights",
    "sequential_mse",
    "set_batchnorm_ranges",
    "smooth",
]
