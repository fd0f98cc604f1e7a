"""Errors of named intermediates: the numbers that are compared, and the axes of one position.

| name | axes | numbers of a position | not compared |
|---|---|---|---|
| attention.query, key, value | (B, H, T, K) | over H and K | padded positions |
| attention.scores, probabilities | (B, H, T, S) | over H and the visible keys | padded queries, invisible keys |
| all others | (B, T, N) | over N | padded positions |

Scores are compared after subtracting their mean over the visible keys, since a constant in each row is free (ALI-4).
"""

import numpy as np

from bloomref.conformance.model.pieces import OVER_HEADS, OVER_KEYS
from bloomref.shapes import Array, Bool, Float

__all__ = ["OVER_HEADS", "OVER_KEYS", "observable", "per_head", "per_position", "visible"]


def visible(is_real: Bool[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """True where a key is visible to a query (ATT-5, ATT-7, ATT-8)."""
    position = np.arange(is_real.shape[1])
    return ((position <= position[:, None]) & is_real[:, None, :] & is_real[:, :, None])[:, None]


def observable(name: str, value: Array, is_real: Bool[Array, "B T"]) -> Bool[Array, "*N"]:
    """Mask of the numbers of `value` that are compared."""
    if name.endswith(OVER_KEYS):
        return np.broadcast_to(visible(is_real), value.shape)
    real = is_real[:, None, :, None] if name.endswith(OVER_HEADS) else is_real[:, :, None]
    return np.broadcast_to(real, value.shape)


def per_position(name: str, value: Array, is_real: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Root mean square over the numbers of each position; 0 at padded positions."""
    if name.endswith(OVER_KEYS):
        square = np.square(per_head(name, value, is_real)).mean(axis=1)
    elif name.endswith(OVER_HEADS):
        square = np.square(value).mean(axis=(1, 3))
    else:
        square = np.square(value).mean(axis=-1)
    return np.sqrt(np.where(is_real, square, 0.0))


def per_head(name: str, value: Float[Array, "B H T S"], is_real: Bool[Array, "B T"]) -> Float[Array, "B H T"]:
    """Root mean square over the visible keys, for each head; for scores and probabilities only."""
    keys = visible(is_real)
    count = np.maximum(keys.sum(axis=-1, keepdims=True), 1)
    value = np.where(keys, value, 0.0)
    if name.endswith("scores"):
        value -= value.sum(axis=-1, keepdims=True) / count
        value *= keys
    return np.sqrt(np.square(value).sum(axis=-1) / count[..., 0])
