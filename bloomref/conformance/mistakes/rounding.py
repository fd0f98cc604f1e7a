"""What a model does that rounds where it must not."""

import numpy as np

from bloomref.dtypes import floating_dtype
from bloomref.shapes import Array


def rounded(x: Array, dtype: str) -> Array:
    """x as it is after a stay in `dtype`; what that cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float32).astype(floating_dtype(dtype)).astype(x.dtype)
