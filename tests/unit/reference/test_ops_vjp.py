"""The backward pass of each operation, compared with complex-step derivatives, which have no cancellation."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from derivatives import directional, normal
from hypothesis import given
from hypothesis import strategies as st

from bloomref.reference import loss, ops, ops_vjp

Array = np.ndarray[Any, Any]
seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 7)


def assert_reverse(function: Callable[[Array], Array], x: Array, dy: Array, dx: Array, seed: int) -> None:
    """dx . v = dy . (the derivative of the function along v), for a random v."""
    direction = normal(seed + 99, *x.shape)
    expected = dy * directional(function, x, direction)
    assert dx.shape == x.shape
    scale = np.abs(dx * direction).sum() + np.abs(expected).sum()
    assert abs((dx * direction).sum() - expected.sum()) <= 1e-12 * scale + 1e-15 * np.abs(dy).sum()


@pytest.mark.clause("GRD-3")
@given(seeds, widths, widths, widths)
def test_linear(seed, time, n, m):
    x, weight, bias, dy = (normal(seed + i, *s) for i, s in enumerate([(2, time, n), (m, n), (m,), (2, time, m)]))
    linear = inspect.unwrap(ops.linear)
    dx, dweight, dbias = ops_vjp.linear_vjp(weight, dy), ops_vjp.linear_weight_vjp(x, dy), ops_vjp.bias_vjp(dy)
    assert_reverse(lambda x: linear(x, weight, bias), x, dy, dx, seed)
    assert_reverse(lambda w: linear(x + 0j, w, bias), weight, dy, dweight, seed)
    assert_reverse(lambda b: linear(x + 0j, weight, b), bias, dy, dbias, seed)


@pytest.mark.clause("GRD-3")
@given(seeds, st.integers(3, 50), st.sampled_from((1e-5, 1e-6, 1e-3)), st.sampled_from((2e-3, 1.0, 1e3)))
def test_layer_norm(seed, width, epsilon, scale):
    x, weight, bias = scale * normal(seed, 2, 3, width), normal(seed + 1, width), normal(seed + 2, width)
    dy, layer_norm = normal(seed + 3, 2, 3, width), inspect.unwrap(ops.layer_norm)
    n, s = ops_vjp.normalised(x, epsilon)
    np.testing.assert_allclose(n * weight + bias, ops.layer_norm(x, weight, bias, epsilon), rtol=1e-13, atol=1e-13)
    assert_reverse(
        lambda x: layer_norm(x, weight, bias, epsilon), x, dy, ops_vjp.layer_norm_vjp(n, s, weight, dy), seed
    )


@pytest.mark.clause("GRD-3")
@given(seeds, st.integers(1, 30), st.sampled_from((0.1, 1.0, 5.0, 40.0)))
def test_gelu(seed, width, scale):
    x, dy = scale * normal(seed, 2, 3, width), normal(seed + 1, 2, 3, width)
    assert_reverse(ops.gelu, x, dy, ops_vjp.gelu_vjp(x, dy), seed)


@pytest.mark.clause("GRD-3")
@given(seeds, widths, widths, st.sampled_from((0.1, 1.0, 30.0)))
def test_softmax(seed, time, keys, scale):
    scores, dy = scale * normal(seed, 2, 3, time, keys), normal(seed + 1, 2, 3, time, keys)
    visible = normal(seed + 2, 2, 1, time, keys) > 0.0

    def softmax(scores: Array) -> Array:
        """`ops.softmax` takes a maximum, which complex numbers lack; here it is the maximum of the real parts."""
        seen = np.where(visible, np.exp(scores - scores.real.max(axis=-1, keepdims=True)), 0.0)
        total = seen.sum(axis=-1, keepdims=True)
        return seen / np.where(total == 0.0, 1.0, total)

    y = ops.softmax(scores.copy(), visible)
    np.testing.assert_allclose(softmax(scores + 0j).real, y, rtol=1e-12, atol=1e-200)
    dscores = ops_vjp.softmax_vjp(y, dy.copy())
    assert_reverse(softmax, scores, dy, dscores, seed)
    assert not dscores[~np.broadcast_to(visible, y.shape)].any()


@pytest.mark.clause("GRD-2", "GRD-3")
@given(seeds, st.integers(0, 6), st.integers(1, 9), st.sampled_from((0.1, 1.0, 300.0)))
def test_cross_entropy(seed, rows, entries, scale):
    logits = scale * normal(seed, rows, entries)
    wanted = np.random.default_rng(seed).integers(0, entries, rows)
    total, dlogits = loss.cross_entropy(logits.copy(), wanted)
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    one_hot = np.arange(entries) == wanted[:, None]
    assert total == pytest.approx(-logs[one_hot].sum(), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(dlogits, np.exp(logs) - one_hot, rtol=1e-12, atol=1e-15)


@pytest.mark.clause("GRD-3")
@given(seeds, st.integers(0, 3), st.integers(0, 9), st.integers(1, 5))
def test_rows_of_the_same_token_add_up(seed, batch, time, entries):
    token_ids, dx = np.random.default_rng(seed).integers(0, entries, (batch, time)), normal(seed, batch, time, 4)
    total = normal(seed + 1, entries, 4)
    expected = total.copy()
    np.add.at(expected, token_ids, dx)
    ops_vjp.add_rows(total, token_ids, dx)
    np.testing.assert_allclose(total, expected, rtol=0, atol=1e-13)
