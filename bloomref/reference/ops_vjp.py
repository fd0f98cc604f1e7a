"""Vector-Jacobian products (VJP) of the operations in `ops`:
from dy, the gradient of a scalar by y = f(x), its gradient by x.

Formulas are per position; sums over positions are spelled out. Arrays are in the accumulation dtype, as in `ops`.
"""

import numpy as np

from bloomref.shapes import Array, Float, Int

C, A = 0.79788456, 0.044715  # the literals of MLP-2


def linear_vjp(weight: Float[Array, "M N"], dy: Float[Array, "B T M"]) -> Float[Array, "B T N"]:
    """y = x W^T + b: dx = dy W."""
    return dy @ weight.astype(dy.dtype, copy=False)


def linear_weight_vjp(x: Float[Array, "B T N"], dy: Float[Array, "B T M"]) -> Float[Array, "M N"]:
    """y = x W^T + b: dW = sum of dy x^T over the positions, as one matrix product."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def bias_vjp(dy: Float[Array, "B T M"]) -> Float[Array, " M"]:
    """y = ... + b: db = sum of dy over the positions."""
    return dy.sum(axis=(0, 1))


def normalised(x: Float[Array, "B T D"], epsilon: float) -> tuple[Float[Array, "B T D"], Float[Array, "B T 1"]]:
    """n = (x - mean) / s and s = sqrt(variance + epsilon): a layer norm before its weight and bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred / s, s


def layer_norm_vjp(
    n: Float[Array, "B T D"], s: Float[Array, "B T 1"], weight: Float[Array, " D"], dy: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """y = n w + b with n and s of `normalised`: with g = dy w, dx = (g - mean(g) - n mean(g n)) / s.

    The mean depends on every x, and so does s: each removes one direction from g. dw = sum of dy n, db = sum of dy.
    """
    g = dy * weight
    along = (g * n).mean(axis=-1, keepdims=True)
    return (g - g.mean(axis=-1, keepdims=True) - n * along) / s


def gelu_vjp(x: Float[Array, "B T F"], dy: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """y = x/2 (1 + t), t = tanh(c (x + a x^3)): dx = dy (1/2 (1 + t) + x/2 (1 - t^2) c (1 + 3 a x^2)).

    c and a are BLOOM's literals; 1 - t^2 is computed as (1 + t)(1 - t).
    """
    square = x * x
    t = np.tanh(C * (x * (1.0 + A * square)))
    inner = C * (x * (1.0 + 3.0 * A * square))  # x times the derivative of the argument of tanh
    one_plus_t = 1.0 + t
    return 0.5 * (one_plus_t * (1.0 + inner * (2.0 - one_plus_t))) * dy


def softmax_vjp(y: Float[Array, "B H T S"], dy: Float[Array, "B H T S"]) -> Float[Array, "B H T S"]:
    """y = softmax(scores): dscore = y (dy - sum of dy y over the keys);
    0 where a key is not visible, for y is 0 there.
    """
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def add_rows(total: Float[Array, "V D"], token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"]) -> None:
    """x = E[token_ids]: dE[v] = sum of dx over the positions that hold token v, added to `total` in place."""
    ids = token_ids.reshape(-1)
    if ids.size == 0:
        return
    order = np.argsort(ids, kind="stable")  # equal ids next to each other: one sum each, always in the same order
    tokens, first = np.unique(ids[order], return_index=True)
    total[tokens] += np.add.reduceat(dx.reshape(ids.size, -1)[order], first, axis=0)
