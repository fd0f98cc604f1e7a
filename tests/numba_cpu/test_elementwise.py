"""exp, tanh, GELU and the roundings over dense ranges of float32, with the errors that `elementwise` states."""

import ml_dtypes
import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from accel.numba_cpu import elementwise  # noqa: E402

STRIDE = 1009  # of the bit patterns; prime, so that mantissas of all kinds occur


def kernel(function, out_dtype=np.float32):
    @numba.njit(error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def run(x):
        out = np.empty(x.size, out_dtype)
        loop(np.ascontiguousarray(x, np.float32), out)
        return out

    return run


EXP, DECAY, TANH, GELU = (kernel(f) for f in (elementwise.exp, elementwise.decay, elementwise.tanh, elementwise.gelu))


def floats(low, high, stride=STRIDE):
    """Every `stride`-th float32 of [low, high], both signs of the bit patterns."""
    bits = np.arange(0, 0x7F800000, stride, np.uint32).view(np.float32)
    both = np.concatenate([-bits[::-1], bits])
    return both[(both >= low) & (both <= high)]


def ulps(got, exact):
    """Error in units of the last place of the exact value; subnormal numbers have the unit of the smallest normal."""
    unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / unit


def test_exp():
    x = floats(-87, 88)
    assert ulps(EXP(x), np.exp(x.astype(np.float64))).max() < 1.05


def test_exp_at_its_ends():
    """Subnormal results are within one of their units; then 0 and infinity, and NaN of NaN."""
    x = np.linspace(-103.9, -87, 100001, dtype=np.float32)
    assert np.abs(EXP(x).astype(np.float64) - np.exp(x.astype(np.float64))).max() <= 2.0**-149
    assert EXP(np.float32([0.0])) == 1.0
    assert not EXP(np.float32([-104.5, -1e30, -np.inf])).any()
    assert np.isinf(EXP(np.float32([88.73, 100, 1e30, np.inf]))).all()


def test_decay():
    """decay has the bits of exp down to -87, is 0 below, and NaN of NaN."""
    x = floats(-87, 0)
    assert DECAY(x).tobytes() == EXP(x).tobytes()
    assert not DECAY(np.float32([-87.01, -1e30, -np.inf])).any()
    assert np.isnan(DECAY(np.float32([np.nan]))).all()


def test_tanh():
    x = floats(-50, 50)
    got = TANH(x)
    assert ulps(got, np.tanh(x.astype(np.float64))).max() < 1.4
    assert np.abs(got).max() == 1.0
    assert (TANH(-x) == -got).all()
    assert TANH(np.float32([-np.inf, -1e30, 0.0, 1e30, np.inf])).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_gelu():
    """Errors are in units of the last place of x / 2, since the tail is a difference that float32 cannot represent."""
    x = floats(-30, 30)
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1.0 + np.tanh(0.79788456 * wide * (1.0 + 0.044715 * wide * wide)))
    unit = np.spacing(np.maximum(np.abs(x), np.finfo(np.float32).tiny) / 2).astype(np.float64)
    assert (np.abs(GELU(x).astype(np.float64) - exact) / unit).max() < 3.5
    assert GELU(np.float32([-1e4, -20.0, 0.0, 20.0, 1e4])).tolist() == [0.0, 0.0, 0.0, 20.0, 1e4]


def edges(dtype):
    """Every finite number of a 16-bit dtype, the middles between neighbours, and both neighbours of those."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    middles = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    return np.concatenate(
        [every, middles, np.nextafter(middles, np.float32(-3e38)), np.nextafter(middles, np.float32(3e38))]
    )


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("function", "dtype", "held"),
    [(elementwise.bfloat_bits, ml_dtypes.bfloat16, np.uint16), (elementwise.float_as_half, np.float16, np.int16)],
    ids=["bfloat16", "float16"],
)
def test_rounding(function, dtype, held):
    """Rounding is to nearest, ties to even, also for subnormals; too large numbers become infinity, NaN stays NaN."""
    x = np.concatenate([edges(dtype), floats(-3.4e38, 3.4e38, 65537), np.float32([np.inf, -np.inf, 3.4e38, 65520.0])])
    run = kernel(function, held)
    assert (run(x) == x.astype(dtype).view(held)).all()
    assert np.isnan(run(np.float32([np.nan])).view(dtype).astype(np.float32)).all()


def test_widening():
    bits = np.arange(-(2**15), 2**15, dtype=np.int16)

    @numba.njit
    def widen(bits, out):
        for i in range(bits.size):
            out[i] = elementwise.half_as_float(bits[i])

    out = np.empty(bits.size, np.float32)
    widen(bits, out)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
