"""LoRA (arXiv:2106.09685): scale B A x, added to a weight's product with x. Clauses: LRA-1 ... LRA-4, LRA-9.

Factors are widened to the dtype of x; x is under dropout in training.
"""

import numpy as np

from bloomref.params import LoraFactors
from bloomref.reference.ops import dropout
from bloomref.shapes import Array, Float


def low_rank(factors: LoraFactors, x: Array, rng: np.random.Generator | None = None) -> Float[Array, "B T M"]:
    """The term that `factors` add to the product of x.

    Args:
        x: (B, T, N), the input of the weight; for an embedding its token ids, (B, T).
        rng: turns dropout of x on.
    """
    if factors.kind == "embedding":
        return factors.scale * (factors.a.T[x] @ factors.b.T)
    x = dropout(x, factors.dropout, rng)
    a, b = factors.a.astype(x.dtype), factors.b.astype(x.dtype)
    if factors.kind == "matrix":
        return factors.scale * (x @ a.T @ b.T)
    (batch, time, _), (width, heads, rank), head_dim = x.shape, a.shape, b.shape[1]
    narrow = (x @ a.reshape(width, heads * rank)).reshape(batch, time, heads, rank)
    y = np.zeros((batch, time, heads, 3, head_dim), x.dtype)  # (B, T, H, C, K), the rows of the fused weight (ATT-2)
    y[:, :, :, factors.projection] = factors.scale * (narrow @ b)
    return y.reshape(batch, time, heads * 3 * head_dim)
