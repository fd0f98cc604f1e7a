"""The backward pass of `lora_ops`: from dy, the gradient by y = scale B A x, the gradients by x, A and B.

Clause: LRA-9.
"""

from copy import deepcopy
from typing import NamedTuple

import numpy as np

from bloomref.params import LoraFactors
from bloomref.reference.ops import dropout
from bloomref.shapes import Array, Float, Int

Rng = np.random.Generator | None


class LowRankGradients(NamedTuple):
    """Gradients by the arguments of `low_rank`; dx is None for token ids, which have no gradient."""

    dx: Float[Array, "B T N"] | None
    da: Array
    db: Array


def low_rank_vjp(factors: LoraFactors, x: Array, dy: Float[Array, "B T M"], rng: Rng = None) -> LowRankGradients:
    """Gradients of `low_rank(factors, x, rng)`.

    Args:
        dy: the gradient by its result.
        rng: the generator as it was before the forward call; it is left where the forward call left it.
    """
    if factors.kind == "embedding":
        return _embedding_vjp(factors, x, dy)
    return _heads_vjp(factors, x, dy, rng) if factors.kind == "heads" else _matrix_vjp(factors, x, dy, rng)


def _matrix_vjp(
    factors: LoraFactors, x: Float[Array, "B T N"], dy: Float[Array, "B T M"], rng: Rng
) -> LowRankGradients:
    """y = scale x A^T B^T: da = sum of (dy B) x^T and db = sum of dy (x A^T)^T over the positions, dx = dy B A."""
    a, b = _like(dy, factors)
    x, dy = dropout(x, factors.dropout, deepcopy(rng)), factors.scale * dy
    narrow, dnarrow = x @ a.T, dy @ b  # (B, T, R)
    da = np.tensordot(dnarrow, x, ((0, 1), (0, 1)))
    db = np.tensordot(dy, narrow, ((0, 1), (0, 1)))
    return LowRankGradients(dropout(dnarrow @ a, factors.dropout, rng), da, db)


def _heads_vjp(factors: LoraFactors, x: Float[Array, "B T D"], dy: Float[Array, "B T M"], rng: Rng) -> LowRankGradients:
    """y[h] = scale x A[:, h] B in the rows of one projection, B shared by the heads."""
    a, b = _like(dy, factors)
    (batch, time, width), heads = x.shape, a.shape[1]
    x = dropout(x, factors.dropout, deepcopy(rng))
    per_head = dy.reshape(batch, time, heads, 3, -1)  # (B, T, H, C, K)
    dy = factors.scale * per_head[:, :, :, factors.projection]  # (B, T, H, K)
    narrow = (x @ a.reshape(width, -1)).reshape(batch, time, heads, -1)  # (B, T, H, R)
    dnarrow = dy @ b.T
    da = np.tensordot(x, dnarrow, ((0, 1), (0, 1)))  # (D, H, R)
    db = np.tensordot(narrow, dy, ((0, 1, 2), (0, 1, 2)))  # (R, K)
    dx = np.tensordot(dnarrow, a, ((2, 3), (1, 2)))
    return LowRankGradients(dropout(dx, factors.dropout, rng), da, db)


def _embedding_vjp(factors: LoraFactors, token_ids: Int[Array, "B T"], dy: Float[Array, "B T D"]) -> LowRankGradients:
    """y = scale A[:, token_ids]^T B^T: the columns of A collect dy B where their token is."""
    a, b = _like(dy, factors)
    dy = factors.scale * dy
    da = np.zeros(a.T.shape, dy.dtype)
    np.add.at(da, token_ids, dy @ b)
    return LowRankGradients(None, da.T, np.tensordot(dy, a.T[token_ids], ((0, 1), (0, 1))))


def _like(x: Array, factors: LoraFactors) -> tuple[Array, Array]:
    """The factors in the dtype of x."""
    return factors.a.astype(x.dtype, copy=False), factors.b.astype(x.dtype, copy=False)
