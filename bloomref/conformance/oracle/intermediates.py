"""How each named intermediate is compared: which of its numbers mean something, and what one position of it is.

| name | axes | numbers of a position | left out |
|---|---|---|---|
| attention.query, key, value | (B, H, T, K) | over H and K | padded positions |
| attention.scores, probabilities | (B, H, T, S) | over H and the visible keys | padded queries, keys that are not visible |
| every other one | (B, T, N) | over N | padded positions |

A constant may be added to a row of scores (ALI-4), so scores are compared after subtracting their mean over the visible keys.
"""

import numpy as np

from bloomref.shapes import Array, Bool, Float

OVER_HEADS = ("attention.query", "attention.key", "attention.value")
OVER_KEYS = ("attention.scores", "attention.probabilities")


def visible(is_real: Bool[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Which key each query sees (ATT-5, ATT-7, ATT-8)."""
    column = np.arange(is_real.shape[1])
    return ((column <= column[:, None]) & is_real[:, None, :] & is_real[:, :, None])[:, None]


def observable(name: str, value: Array, is_real: Bool[Array, "B T"]) -> Bool[Array, "*N"]:
    """The numbers of `value` that mean something, as a mask of its shape."""
    if name.endswith(OVER_KEYS):
        return np.broadcast_to(visible(is_real), value.shape)
    real = is_real[:, None, :, None] if name.endswith(OVER_HEADS) else is_real[:, :, None]
    return np.broadcast_to(real, value.shape)


def per_position(name: str, value: Array, is_real: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Root mean square of the numbers of each position; 0 at padded ones."""
    if name.endswith(OVER_KEYS):
        square = np.square(per_head(name, value, is_real)).mean(axis=1)
    elif name.endswith(OVER_HEADS):
        square = np.square(value).mean(axis=(1, 3))
    else:
        square = np.square(value).mean(axis=-1)
    return np.sqrt(np.where(is_real, square, 0.0))


def per_head(name: str, value: Float[Array, "B H T S"], is_real: Bool[Array, "B T"]) -> Float[Array, "B H T"]:
    """The same of each head, for those over keys."""
    seen = visible(is_real)
    count = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
    value = np.where(seen, value, 0.0)
    if name.endswith("scores"):
        value -= value.sum(axis=-1, keepdims=True) / count
        value *= seen
    return np.sqrt(np.square(value).sum(axis=-1) / count[..., 0])
