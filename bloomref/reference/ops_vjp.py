"""The reverse mode of the operations in `ops`: from dy, the gradient of a number by y = f(x), that number's gradient by x.

Formulas are per position; sums over positions are spelled out. Arrays are in the accumulation dtype, as in `ops`.
"""

import numpy as np

from bloomref.shapes import Array, Float, Int

_SQRT_2_OVER_PI = 0.79788456  # the literals of MLP-2
_CUBIC = 0.044715


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
    """n = (x - mean) / s, and s = sqrt(variance + epsilon): what a layer norm computes before gain and bias."""
    n = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(n).mean(axis=-1, keepdims=True) + epsilon)
    n /= s
    return n, s


def layer_norm_vjp(
    n: Float[Array, "B T D"], s: Float[Array, "B T 1"], weight: Float[Array, " D"], dy: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """y = n w + b with n and s of `normalised`: with g = dy w, dx = (g - mean(g) - n mean(g n)) / s.

    The mean is taken off x, and s holds n's own scale: both remove a direction from g. dw = sum of dy n, db = sum of dy.
    """
    g = dy * weight.astype(dy.dtype, copy=False)
    along = (g * n).mean(axis=-1, keepdims=True)
    g -= g.mean(axis=-1, keepdims=True)
    g -= n * along
    g /= s
    return g


def gelu_vjp(x: Float[Array, "B T F"], dy: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """y = x/2 (1 + t), t = tanh(c (x + a x^3)): dx = dy (1/2 (1 + t) + x/2 (1 - t^2) c (1 + 3 a x^2)).

    c and a are BLOOM's literals. Written in place, as `ops.gelu`.
    """
    square = x * x
    t = square * _CUBIC
    t += 1.0
    t *= x
    t *= _SQRT_2_OVER_PI
    np.tanh(t, out=t)
    slope = square  # x c (1 + 3 a x^2): twice the inner derivative times x/2
    slope *= 3.0 * _CUBIC
    slope += 1.0
    slope *= x
    slope *= _SQRT_2_OVER_PI
    t += 1.0
    slope *= 2.0 - t  # 1 - t^2 = (1 + t)(1 - t), and t holds 1 + t by now
    slope += 1.0
    slope *= t
    slope *= 0.5
    slope *= dy
    return slope


def softmax_vjp(y: Float[Array, "B H T S"], dy: Float[Array, "B H T S"]) -> Float[Array, "B H T S"]:
    """y = softmax(scores): dscore = y (dy - sum of dy y over the keys); 0 where a key is not visible, for y is 0 there.

    Overwrites `dy`.
    """
    dy -= (dy * y).sum(axis=-1, keepdims=True)
    dy *= y
    return dy


def add_rows(total: Float[Array, "V D"], token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"]) -> None:
    """x = E[token_ids]: dE[v] = sum of dx over the positions that hold token v, added to `total` in place."""
    ids = token_ids.reshape(-1)
    if ids.size == 0:
        return
    order = np.argsort(ids, kind="stable")  # equal ids side by side: one sum each, in an order that never changes
    found, first = np.unique(ids[order], return_index=True)
    total[found] += np.add.reduceat(dx.reshape(ids.size, -1)[order], first, axis=0)
