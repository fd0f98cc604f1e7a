"""The attention kernels against the plain formula in float64."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from accel.numba_cpu.attention import BLOCK, append, attend, workspace
from accel.numba_cpu.cpu import PANEL
from bloomref import alibi

HELD = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.int16}


def run(qkv, heads, width, real, cuts, dtype, threads=2):
    """qkv (B, T, H 3 K) through the cache in the given pieces: (B, T, H K)."""
    batch, time, _ = qkv.shape
    capacity = (time + BLOCK - 1) // BLOCK * BLOCK
    columns = (width + PANEL - 1) // PANEL * PANEL
    keys = np.zeros(batch * heads * capacity * width, HELD[dtype])
    values = np.zeros(batch * heads * capacity * columns, HELD[dtype])
    seen = np.zeros((batch, capacity), bool)
    seen[:, :time] = real
    parts = []
    for a, b in pairwise(cuts):
        rows = np.ascontiguousarray(qkv[:, a:b]).reshape(batch * (b - a), -1)
        out = np.full((batch * (b - a), heads * width), np.nan, np.float32)
        append(rows, batch, b - a, heads, width, a, capacity, keys, values, threads)
        attend(rows, batch, b - a, heads, width, a, capacity, keys, values, seen.reshape(batch, -1, PANEL),
               alibi.slopes(heads), np.float32(width**-0.5), out, np.empty((threads, workspace(width)), np.float32),
               threads)  # fmt: skip
        parts.append(out.reshape(batch, b - a, -1))
    return np.concatenate(parts, 1)


def plain(qkv, heads, width, real, dtype, work=np.float64):
    """softmax(q k / sqrt(K) + slope (j - i)) v over the real keys j <= i, with all T x T scores in memory."""
    batch, time, _ = qkv.shape
    q, k, v = np.moveaxis(qkv.reshape(batch, time, heads, 3, width), (3, 2), (0, 2))
    k, v = (x.astype(getattr(ml_dtypes, dtype, dtype)).astype(work) for x in (k, v))
    j = np.arange(time)
    scores = q.astype(work) @ k.swapaxes(-1, -2) * work(width**-0.5)
    scores += (alibi.slopes(heads).astype(work)[:, None, None] * (j - j[:, None])).astype(work)
    visible = (j <= j[:, None]) & real[:, None, None, :] & real[:, None, :, None]
    weights = np.where(visible, np.exp(np.where(visible, scores - np.max(scores, -1, keepdims=True, where=visible,
                       initial=-1e30), 0)), 0)  # fmt: skip
    total = weights.sum(-1, keepdims=True)
    return (weights / np.where(total == 0, 1, total) @ v).swapaxes(1, 2).reshape(batch, time, -1)


def test_the_formula_keeps_the_heads_apart():
    """The interleave of the formula itself, by hand: head h, component c, lane k is column (3 h + c) K + k."""
    qkv = np.arange(18.0).reshape(1, 1, 18)
    assert plain(qkv, 2, 3, np.ones((1, 1), bool), "float32").tolist() == [[[6.0, 7.0, 8.0, 15.0, 16.0, 17.0]]]


@pytest.mark.parametrize("dtype", HELD)
@pytest.mark.parametrize(
    ("heads", "width", "time"),
    [(1, 1, 5), (3, 7, 40), (2, 16, 131), (9, 33, 30), (3, 64, 257), (2, 80, 128), (1, 96, 300), (12, 5, 129)],
)
def test_attention(heads, width, time, dtype):
    """Within 4 times the largest error of the same formula in float32, and one rounding."""
    rng = np.random.default_rng(time)
    qkv = rng.standard_normal((2, time, heads * 3 * width)).astype(np.float32)
    real = rng.random((2, time)) < 0.8
    exact = plain(qkv, heads, width, real, dtype)
    narrow = plain(qkv, heads, width, real, dtype, np.float32)
    got = run(qkv, heads, width, real, (0, time), dtype)
    assert np.abs(got - exact).max() <= 4 * np.abs(narrow - exact).max() + 2.0**-24 * np.abs(exact).max()
    assert not got[~real].any()


@pytest.mark.parametrize("dtype", HELD)
def test_pieces_and_threads_do_not_change_a_bit(dtype):
    rng = np.random.default_rng(0)
    qkv, real = rng.standard_normal((2, 270, 5 * 3 * 33)).astype(np.float32), rng.random((2, 270)) < 0.9
    once = run(qkv, 5, 33, real, (0, 270), dtype)
    for cuts in ((0, 1, 2, 14, 127, 128, 129, 260, 270), tuple(range(0, 271, 27))):
        assert run(qkv, 5, 33, real, cuts, dtype, threads=1).tobytes() == once.tobytes()


def test_scores_of_every_size():
    """Neither a score of thousands nor rows without a visible key give NaN or infinity."""
    rng = np.random.default_rng(0)
    qkv = (rng.standard_normal((1, 200, 3 * 8)) * 300).astype(np.float32)
    real = np.ones((1, 200), bool)
    real[0, :50] = False
    got = run(qkv, 1, 8, real, (0, 200), "float32")
    np.testing.assert_allclose(got, plain(qkv, 1, 8, real, "float32"), rtol=0, atol=1e-3 * np.abs(qkv).max())
