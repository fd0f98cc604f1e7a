"""Numbers that are exact in every dtype of the kit."""

import ml_dtypes
import numpy as np

from bloomref.shapes import Array, Float


def snap(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Round to numbers that are exact in bfloat16, float16 and float32; the result is float64."""
    y = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    y[np.abs(y) < 2.0**-17] = 0.0  # subnormal in float16, with fewer bits than bfloat16
    return y
