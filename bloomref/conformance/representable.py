"""Numbers that every dtype of the kit holds."""

import ml_dtypes
import numpy as np

from bloomref.shapes import Array, Float


def snap(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """The nearest numbers that bfloat16, float16 and float32 all hold exactly, as float64."""
    y = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    y[np.abs(y) < 2.0**-17] = 0.0  # below, float16 has fewer bits than bfloat16
    return y
