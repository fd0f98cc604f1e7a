"""The operations of BLOOM, one formula each.

Arrays are in the accumulation dtype (NUM-2), and so are results; the vectors of a layer may have a narrower dtype,
which NumPy promotes.
"""

import numpy as np

from bloomref.shapes import Array, Bool, Float


def linear(x: Float[Array, "B T N"], weight: Float[Array, "M N"], bias: Float[Array, " M"]) -> Float[Array, "B T M"]:
    """x W^T + b."""
    return x @ weight.T + bias


def layer_norm(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "B T D"]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over D, with the biased variance. Clause: EMB-3."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weight + bias


def gelu(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """The tanh form with BLOOM's literals; in float64, 0.79788456 differs from sqrt(2 / pi). Clause: MLP-2."""
    return 0.5 * (x * (1.0 + np.tanh(0.79788456 * (x * (1.0 + 0.044715 * (x * x))))))


def softmax(scores: Float[Array, "B H T S"], visible: Bool[Array, "B #H T S"]) -> Float[Array, "B H T S"]:
    """exp(score) / sum of exp(score) over visible keys; zeros in rows without visible keys. Clauses: ATT-6, ATT-8."""
    scores = np.where(visible, scores, -np.inf)
    highest = scores.max(axis=-1, keepdims=True, initial=np.finfo(scores.dtype).min)  # finite where no key is visible
    powers = np.exp(scores - highest)
    total = powers.sum(axis=-1, keepdims=True)
    return powers / np.where(total == 0.0, 1.0, total)


def dropout(x: Float[Array, "*N"], rate: float, rng: np.random.Generator | None) -> Float[Array, "*N"]:
    """Zero with probability `rate`, else x / (1 - rate); x without a generator. Clauses: MOD-7, MOD-10."""
    if rng is None or rate == 0.0:
        return x
    return np.where(rng.random(x.shape, np.float32) < rate, 0.0, x / (1.0 - rate)).astype(x.dtype)
