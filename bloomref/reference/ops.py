"""The operations of BLOOM. Arrays are in the accumulation dtype (NUM-2); nothing here changes a dtype behind your back."""

import math

import numpy as np

from bloomref.shapes import Array, Bool, Float

_SQRT_2_OVER_PI = 0.79788456  # BLOOM's own literal, not the exact constant: it differs in float64 (MLP-2)


def linear(x: Float[Array, "B T N"], weight: Float[Array, "M N"], bias: Float[Array, " M"]) -> Float[Array, "B T M"]:
    """x W^T + b, with the weights widened to the dtype of x."""
    return np.add(y := x @ weight.astype(x.dtype, copy=False).T, bias.astype(x.dtype, copy=False), out=y)


def layer_norm(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "B T D"]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over D, with the biased variance. Clause: EMB-3."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred /= np.sqrt(variance + epsilon)
    return centred * weight.astype(x.dtype, copy=False) + bias.astype(x.dtype, copy=False)


def gelu(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """x/2 (1 + tanh(0.79788456 x (1 + 0.044715 x^2))), the tanh form. Clause: MLP-2.

    Written in place: at T = 512 the temporaries of the one-line form cost more than the tanh.
    """
    y = x * x
    y *= 0.044715
    y += 1.0
    y *= x
    y *= _SQRT_2_OVER_PI
    np.tanh(y, out=y)
    y += 1.0
    y *= x
    y *= 0.5
    return y


def softmax(scores: Float[Array, "B H T S"], visible: Bool[Array, "B #H T S"]) -> Float[Array, "B H T S"]:
    """exp(score) / sum of exp(score) over the visible keys; zeros in a row that sees no key. Clauses: ATT-6, ATT-8.

    Overwrites `scores`.
    """
    np.copyto(scores, -math.inf, where=~visible)
    peak = scores.max(axis=-1, keepdims=True, initial=np.finfo(scores.dtype).min)
    np.exp(np.subtract(scores, peak, out=scores), out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    total[total == 0.0] = 1.0
    return np.divide(scores, total, out=scores)


def dropout(x: Float[Array, "*N"], rate: float, rng: np.random.Generator | None) -> Float[Array, "*N"]:
    """Zeros with probability `rate`, the rest divided by 1 - rate; x itself outside training. Clauses: MOD-7, MOD-10."""
    if rng is None or rate == 0.0:
        return x
    return np.where(rng.random(x.shape, np.float32) < rate, 0.0, x / (1.0 - rate)).astype(x.dtype)
