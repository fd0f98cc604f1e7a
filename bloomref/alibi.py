"""ALiBi slopes (Press et al. 2021, arXiv:2108.12409), as BLOOM was trained with them."""

import math

import numpy as np

from bloomref.dtypes import FLOAT32, DType
from bloomref.errors import invalid
from bloomref.shapes import Array, Float


def slopes(num_heads: int, dtype: DType = FLOAT32) -> Float[Array, " H"]:
    """The slope of each head, computed in float64 and rounded once to `dtype`.

    With n = 2 ** floor(log2 H): head i = 1 ... n has 2 ** (-8 i / n); the rest, every second slope of 2n heads.

    Clauses: ALI-1, ALI-2, ALI-3.
    """
    if num_heads < 1:
        raise invalid("num_heads", "a positive integer", num_heads)
    n = 2 ** math.floor(math.log2(num_heads))
    regular = [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]
    extra = [2.0 ** (-8.0 * i / (2 * n)) for i in range(1, 2 * (num_heads - n), 2)]
    return np.array(regular + extra, np.float64).astype(dtype)
