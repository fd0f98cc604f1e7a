"""LoRA's products and their gradients, in float32 over rows (N, D), N = B T positions. Clauses: LRA-1 ... LRA-4, LRA-9.

The factors arrive as data (`bloomref.params.LoraFactors`); every product here is a BLAS call. Heads: the fused rows of
the weight are (H, C, K), of which one projection c is adapted.
`rng` is the generator as it was before the forward product.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from accel.numba_cpu.training.dropout import Rng, drop, undrop
from bloomref.params import LoraFactors

Take = Callable[[str, Callable[[], Any]], None]
"""Receives the name of a factor, "a" or "b", and a function that computes its gradient."""


def add_product(y: Any, factors: LoraFactors, x: Any, rng: Rng) -> None:
    """y += scale B A dropout(x), in place.

    Args:
        y: (N, M), contiguous.
        x: (N, D).
    """
    x, _ = drop(x, factors.dropout, rng)
    scale = np.float32(factors.scale)
    narrow = x @ _a(factors).T  # (N, R), or (N, H R) for heads
    if factors.kind == "matrix":
        y += scale * (narrow @ _b(factors).T)
    else:
        of_heads = narrow.reshape(-1, len(factors.b)) @ _b(factors)  # (N H, K)
        target = _projection(y, factors)
        target += scale * of_heads.reshape(target.shape)


def product_vjp(factors: LoraFactors, x: Any, dy: Any, rng: Rng, take: Take) -> Any:
    """The gradient by x of `add_product`'s term, (N, D); the factors' gradients go to `take`."""
    x, dropped = drop(x, factors.dropout, rng)
    a, scale = _a(factors), np.float32(factors.scale)
    narrow = x @ a.T
    if factors.kind == "matrix":
        dnarrow = scale * (dy @ _b(factors))
        take("b", lambda: scale * (dy.T @ narrow))
    else:
        of_heads = np.ascontiguousarray(_projection(dy, factors))  # (N, H, K)
        dnarrow = (scale * (of_heads @ _b(factors).T)).reshape(narrow.shape)
        r, width = factors.b.shape
        take("b", lambda: scale * (narrow.reshape(-1, r).T @ of_heads.reshape(-1, width)))
    take("a", lambda: _shaped_as_a(dnarrow.T @ x, factors))
    return undrop(dnarrow @ a, dropped, factors.dropout)


def lookup(factors: LoraFactors, token_ids: Any) -> Any:
    """scale B A[:, token_ids], (N, D): the term that is added to the embedding lookup."""
    return np.float32(factors.scale) * (_a(factors).T[token_ids] @ _b(factors).T)


def lookup_vjp(factors: LoraFactors, token_ids: Any, dy: Any, take: Take) -> None:
    """The factors' gradients of `lookup`; token ids have none."""
    scale = np.float32(factors.scale)

    def gradient_of_a() -> Any:
        da = np.zeros(factors.a.T.shape, np.float32)
        np.add.at(da, token_ids, scale * (dy @ _b(factors)))
        return da.T

    take("a", gradient_of_a)
    take("b", lambda: scale * (dy.T @ _a(factors).T[token_ids]))


def _a(factors: LoraFactors) -> Any:
    """A as a matrix, (R, N); of heads, those of all heads below each other, (H R, D)."""
    a = factors.a.astype(np.float32, copy=False)
    return a.reshape(len(a), -1).T if factors.kind == "heads" else a


def _b(factors: LoraFactors) -> Any:
    return factors.b.astype(np.float32, copy=False)


def _shaped_as_a(da: Any, factors: LoraFactors) -> Any:
    return da.T.reshape(factors.a.shape) if factors.kind == "heads" else da


def _projection(rows: Any, factors: LoraFactors) -> Any:
    """The rows of one projection, a view (N, H, K) of (N, H C K)."""
    heads, width = factors.a.shape[1], factors.b.shape[1]
    return rows.reshape(len(rows), heads, 3, width)[:, :, factors.projection]
