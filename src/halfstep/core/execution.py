"""How an operation runs on a target, and how shapes speak of the batch."""

from enum import StrEnum

# The number of samples in a batch, in shapes and in attributes that hold shapes.
BATCH = -1


class Execution(StrEnum):
    """How one operation runs.

    | execution   | inputs -> output | meaning                                                   |
    |-------------|------------------|-----------------------------------------------------------|
    | INTEGER     | codes -> codes   | on an integer kernel, by the formula named in the program |
    | SCALED      | codes -> float   | on an integer kernel; its sums are scaled to float32      |
    | DEQUANTIZED | codes -> codes   | the runtime computes in float32, by a formula we know     |
    | COPY        | codes -> codes   | codes are moved, never changed; one grid in and out       |
    | FLOAT       | float -> float   | a float kernel of the runtime; its last bit is not known  |
    | EDGE        | float <-> codes  | quantize or dequantize                                    |
    """

    INTEGER = "integer"
    SCALED = "scaled"
    DEQUANTIZED = "dequantized"
    COPY = "copy"
    FLOAT = "float"
    EDGE = "edge"
