"""Another size of the vocabulary: rows cut off, or new rows as transformers makes them. Clause: WGT-35."""

from dataclasses import replace

import numpy as np

from bloomref.dtypes import accumulation_dtype, cast
from bloomref.params import Params
from bloomref.shapes import Array, Float

SHRINKAGE = 1e-9


def resized(
    params: Params, size: int, *, initializer_range: float | None = None, rng: np.random.Generator | None = None
) -> Params:
    """The weights with `size` rows of the embedding and, if it is a separate matrix, of the LM head.

    Args:
        initializer_range: standard deviation of new rows of mean zero; None: new rows have the mean of the old ones,
            and 1e-9 of their covariance.
        rng: draws the new rows; None: seed 0.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    embedding = _resized(params.word_embedding, size, initializer_range, rng)
    head = None if params.lm_head is None else _resized(params.lm_head, size, initializer_range, rng)
    return replace(params, word_embedding=embedding, lm_head=head, source=None)


def _resized(
    matrix: Float[Array, "V D"], size: int, initializer_range: float | None, rng: np.random.Generator
) -> Float[Array, "M D"]:
    count = size - len(matrix)
    if count <= 0:
        return matrix[:size]
    old = matrix.astype(accumulation_dtype(matrix.dtype))
    noise = rng.standard_normal((count, old.shape[1]))
    rows = noise * initializer_range if initializer_range is not None else _around_mean(old, noise)
    return np.concatenate([matrix, cast(rows.astype(old.dtype), matrix.dtype)])


def _around_mean(old: Float[Array, "V D"], noise: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows of a normal distribution with the mean of `old` and a little of its covariance; the mean where that is
    not positive definite, as with fewer rows than columns.
    """
    mean = old.mean(axis=0)
    centred = old - mean
    covariance = SHRINKAGE * (centred.T @ centred) / len(old)
    try:
        return mean + noise @ np.linalg.cholesky(covariance).T
    except np.linalg.LinAlgError:
        return np.broadcast_to(mean, noise.shape)
