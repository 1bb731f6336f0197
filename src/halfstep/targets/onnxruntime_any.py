"""ONNX Runtime on any x86-64 CPU, with or without VNNI: the same file, the same codes.

CPUs with AVX2 but without VNNI add two products in int16. A program for this target keeps every
such sum within int16, whatever the input, so that the fast kernels of all of them are exact
(``docs/arithmetic.md``). All else is that of the target ``onnxruntime``.
"""

from dataclasses import replace

from halfstep.core.qtype import PAIR_SUM_BITS
from halfstep.targets import onnxruntime

TARGET = replace(
    onnxruntime.TARGET,
    name="onnxruntime_any",
    title="ONNX Runtime, any x86-64: QDQ, uint8 activations, int8 weights that never saturate",
    pair_sum_bits=PAIR_SUM_BITS,
)
