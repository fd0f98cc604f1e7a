"""Every operation compared with its formula in loops, and its properties."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.reference import ops

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)
FLOATS = (np.float32, np.float64)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.clause("MLP-3", "ATT-9")
@given(seeds, sizes, sizes, sizes)
def test_linear_is_x_times_weight_transposed_plus_bias(seed, time, n, m):
    x, weight, bias = normal(seed, 2, time, n), normal(seed + 1, m, n), normal(seed + 2, m)
    np.testing.assert_allclose(ops.linear(x, weight, bias), naive.linear(x, weight, bias), rtol=0, atol=1e-13)


@pytest.mark.clause("EMB-3")
@given(seeds, st.integers(1, 50), st.sampled_from((1e-5, 1e-6, 1e-3)), st.sampled_from((2e-3, 1.0, 1e3)))
def test_layer_norm(seed, width, epsilon, scale):
    x, gain, shift = scale * normal(seed, 2, 3, width), normal(seed + 1, width), normal(seed + 2, width)
    expected = naive.layer_norm(x, gain, shift, epsilon)
    np.testing.assert_allclose(ops.layer_norm(x, gain, shift, epsilon), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.clause("EMB-3")
def test_layer_norm_has_epsilon_inside_the_root_and_the_biased_variance():
    x = np.array([[[3e-3, -1e-3, -2e-3]]])
    variance = (9e-6 + 1e-6 + 4e-6) / 3
    y = ops.layer_norm(x, np.ones(3), np.zeros(3), 1e-5)
    np.testing.assert_allclose(y, x / math.sqrt(variance + 1e-5), rtol=1e-13)


@pytest.mark.clause("EMB-3")
def test_layer_norm_of_a_large_common_offset_keeps_its_digits():
    """The two-pass variance: E[x^2] - E[x]^2 loses all digits here in float32."""
    x = normal(0, 1, 4, 64).astype(np.float32)
    ones, zeros = np.ones(64, np.float32), np.zeros(64, np.float32)
    np.testing.assert_allclose(
        ops.layer_norm(x + np.float32(512), ones, zeros, 1e-5), ops.layer_norm(x, ones, zeros, 1e-5), atol=1e-3
    )


def test_operations_leave_their_inputs_alone():
    x, gain, shift = normal(0, 1, 3, 8), normal(1, 8), normal(2, 8)
    before = x.copy(), gain.copy(), shift.copy()
    ops.layer_norm(x, gain, shift, 1e-5), ops.gelu(x), ops.linear(x, normal(3, 5, 8), normal(4, 5))
    ops.dropout(x, 0.5, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip((x, gain, shift), before, strict=True))


@pytest.mark.clause("MLP-2")
@given(st.floats(-1e4, 1e4))
def test_gelu(u):
    assert ops.gelu(np.array([[[u]]])).item() == pytest.approx(naive.gelu(u), rel=1e-13, abs=1e-300)


@pytest.mark.clause("MLP-2")
def test_gelu_has_the_literals_of_bloom():
    """At u = 1 the literal 0.79788456 and sqrt(2 / pi) differ by 1e-9, the erf form by 1e-4."""
    got = ops.gelu(np.array([[[1.0]]])).item()
    assert got == pytest.approx(0.5 * (1 + math.tanh(0.79788456 * 1.044715)), rel=1e-15)
    assert abs(got - 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))) > 1e-11
    assert abs(got - 0.841344746) > 1e-4


def scores_and_mask(seed: int, time: int, keys: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((2, 3, time, keys)), rng.random((2, 1, time, keys)) < 0.6


@pytest.mark.clause("ATT-6", "ATT-8")
@given(seeds, sizes, sizes, st.sampled_from((1.0, 30.0, 1e4)))
def test_softmax_runs_over_the_visible_keys_only(seed, time, keys, scale):
    scores, visible = scores_and_mask(seed, time, keys, scale)
    got = ops.softmax(scores.copy(), visible)
    for b, h, t in np.ndindex(2, 3, time):
        is_visible = visible[b, 0, t]
        expected = np.zeros(keys)
        if is_visible.any():
            expected[is_visible] = naive.softmax(scores[b, h, t, is_visible].tolist())
        np.testing.assert_allclose(got[b, h, t], expected, rtol=1e-13, atol=0)
        assert not got[b, h, t, ~is_visible].any()


@pytest.mark.clause("ATT-6")
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_survives_the_largest_scores(dtype):
    top = np.finfo(dtype).max
    scores = np.array([[[[top, -top, top], [-top, -top, -top]]]], dtype)
    visible = np.array([[[[True, True, True], [True, False, False]]]])
    with np.errstate(over="ignore"):  # top - -top is infinite, and its exponential rightly 0
        got = ops.softmax(scores, visible)
    assert got.tolist() == [[[[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]]]


@pytest.mark.clause("ATT-6")
@given(seeds, st.floats(-50, 50))
def test_softmax_ignores_a_constant_per_row(seed, constant):
    scores, visible = scores_and_mask(seed, 4, 5, 1.0)
    shifted = ops.softmax(scores + constant, visible)
    np.testing.assert_allclose(shifted, ops.softmax(scores.copy(), visible), rtol=1e-12)


@pytest.mark.clause("NUM-6")
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_operation_changes_a_dtype(dtype):
    x, vector = normal(0, 1, 3, 4).astype(dtype), normal(1, 4).astype(dtype)
    results = [
        ops.linear(x, normal(2, 4, 4).astype(dtype), vector),
        ops.layer_norm(x, vector, vector, 1e-5),
        ops.gelu(x),
        ops.softmax(x[None], np.ones((1, 1, 3, 4), bool)),
        ops.dropout(x, 0.1, np.random.default_rng(0)),
    ]
    assert [y.dtype for y in results] == [np.dtype(dtype)] * 5


@pytest.mark.clause("EMB-6")
def test_operations_accept_empty_arrays():
    empty = np.zeros((2, 0, 4))
    assert ops.layer_norm(empty, np.ones(4), np.ones(4), 1e-5).shape == (2, 0, 4)
    assert ops.softmax(np.zeros((2, 3, 0, 0)), np.zeros((2, 1, 0, 0), bool)).shape == (2, 3, 0, 0)


@pytest.mark.clause("MOD-7")
@given(seeds, st.sampled_from((0.1, 0.25, 0.5, 0.9)))
def test_dropout_zeroes_or_scales_each_element(seed, rate):
    x = 1.0 + np.random.default_rng(seed).random((100, 100))
    y = ops.dropout(x, rate, np.random.default_rng(seed))
    dropped = y == 0.0
    np.testing.assert_allclose(y[~dropped], x[~dropped] / (1.0 - rate), rtol=1e-15)
    deviation = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(dropped.mean() - rate) < 6 * deviation
    assert y.mean() == pytest.approx(x.mean(), abs=6 * 2 * deviation / (1 - rate))  # the expectation stays


@pytest.mark.clause("MOD-7")
def test_dropout_is_independent_between_elements():
    dropped = ops.dropout(np.ones((200, 200)), 0.5, np.random.default_rng(1)) == 0.0
    for axis in (0, 1):
        equal_neighbours = (dropped == np.roll(dropped, 1, axis)).mean()
        assert abs(equal_neighbours - 0.5) < 0.02


@pytest.mark.clause("MOD-10")
def test_dropout_outside_training_is_the_identity():
    x = normal(0, 2, 3)
    assert ops.dropout(x, 0.9, None) is x
    assert ops.dropout(x, 0.0, np.random.default_rng(0)) is x


@pytest.mark.clause("MOD-12")
def test_dropout_follows_the_seed():
    x = np.ones((10, 10))
    first, second, other = (ops.dropout(x, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
