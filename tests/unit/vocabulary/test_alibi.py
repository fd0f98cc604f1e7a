"""The slopes against published values, the recursion of the paper's code, and their rounding."""

import math
from fractions import Fraction

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.alibi import slopes
from bloomref.config import BloomConfig
from bloomref.errors import InvalidInput
from bloomref.reference import model

FLOAT64 = np.dtype(np.float64)


@pytest.mark.clause("ALI-1", "ALI-2", "ALI-3")
@given(st.integers(1, 300))
def test_slopes_follow_the_recursion_of_the_paper(heads):
    got = slopes(heads, FLOAT64)
    np.testing.assert_allclose(got, naive.slopes(heads), rtol=1e-13)
    assert np.array_equal(slopes(heads), got.astype(np.float32))


@pytest.mark.clause("ALI-1")
def test_slopes_of_a_power_of_two_are_a_geometric_series():
    assert slopes(8, FLOAT64).tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes(16, FLOAT64)[1::2].tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes(1, FLOAT64).tolist() == [2.0**-8]


@pytest.mark.clause("ALI-2")
def test_slopes_of_twelve_heads():
    """Heads 9 to 12 take the 1st, 3rd, 5th and 7th slope of sixteen."""
    expected = [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    np.testing.assert_allclose(slopes(12, FLOAT64), expected, rtol=1e-15)


@pytest.mark.clause("ALI-1", "ALI-2")
def test_slopes_of_the_176b_model():
    """112 heads: values as the training code and transformers print them, to six digits."""
    got = slopes(112)
    published = {0: 0.917004, 1: 0.840896, 63: 0.003906, 64: 0.957603, 65: 0.878126, 111: 0.016317}
    assert {i: round(float(got[i]), 6) for i in published} == published
    assert len(got) == 112


@pytest.mark.clause("ALI-3")
@pytest.mark.parametrize("heads", [3, 9, 12, 16, 24, 32, 112])
def test_slopes_are_correctly_rounded_float32(heads):
    """Against exact arithmetic: slope ** (2 n) is a power of two, so the two neighbours decide."""
    n = 2 ** math.floor(math.log2(heads))
    for i, slope in enumerate(slopes(heads)):
        power = 2 * (i + 1) if i < n else 2 * (i - n) + 1  # slope = 2 ** (-8 power / (2 n))
        exact = Fraction(1, 2 ** (8 * power))
        low = (Fraction(float(np.nextafter(slope, np.float32(0)))) + Fraction(float(slope))) / 2
        high = (Fraction(float(np.nextafter(slope, np.float32(1)))) + Fraction(float(slope))) / 2
        assert low ** (2 * n) <= exact <= high ** (2 * n)


@pytest.mark.parametrize("heads", [0, -1])
def test_slopes_need_a_head(heads):
    with pytest.raises(InvalidInput, match="num_heads"):
        slopes(heads)


def seen_from(start: int, real: np.ndarray, heads: int = 3, dtype: np.dtype = FLOAT64) -> model.View:
    config = BloomConfig(vocabulary_size=5, num_layers=1, num_heads=heads, hidden_dim=heads, intermediate_dim=1)
    return model.view(config, real, start, dtype)


@pytest.mark.clause("ALI-4")
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_bias_is_slope_times_distance_of_columns(start, time, seed):
    real = np.random.default_rng(seed).random((2, start + time)) < 0.5
    bias = seen_from(start, real).bias
    for h, t, s in np.ndindex(bias.shape):
        assert bias[h, t, s] == naive.slopes(3)[h] * (s - (start + t))


@pytest.mark.clause("ALI-5")
def test_bias_is_not_rounded_to_sixteen_bits():
    """With 9 heads the last slope is 2 ** -0.5: at a distance of 2000, float16 is off by 0.1 and bfloat16 by 2."""
    bias = seen_from(2000, np.ones((1, 2001), bool), heads=9, dtype=np.dtype(np.float32)).bias
    assert bias.dtype == np.float32
    assert bias[8, 0, 0] == np.float32(-2000) * np.float32(2**-0.5)


@pytest.mark.clause("ALI-4", "ALI-5")
def test_distances_beyond_2048_are_exact():
    """4099 is not representable in float16 or bfloat16."""
    bias = seen_from(4099, np.ones((1, 4100), bool), heads=1, dtype=np.dtype(np.float32)).bias
    assert np.array_equal(bias[0, 0], -np.arange(4099, -1, -1) / 256)


@pytest.mark.clause("ATT-5", "ATT-7")
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_query_sees_real_columns_up_to_its_own(start, time, seed):
    real = np.random.default_rng(seed).random((2, start + time)) < 0.6
    visible = seen_from(start, real).visible
    for b, t, s in np.ndindex(2, time, start + time):
        assert visible[b, 0, t, s] == (s <= start + t and real[b, s] and real[b, start + t])
