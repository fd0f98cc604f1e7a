"""The attention kernels against the plain formula in float64."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from layout import read_rows

from accel.numba_cpu.attention import append, attend, scratch_floats, scratch_operands
from accel.numba_cpu.isa import HAS_BF16_DOT, NR
from accel.numba_cpu.structs import AttentionScratch, CacheView, CallShape, PackedRows
from accel.numba_cpu.weight_packing import FORMATS, Format, up
from bloomref import alibi

KINDS = {
    "float32": FORMATS[np.dtype(np.float32)],
    "float16": FORMATS[np.dtype(np.float16)],
    "bfloat16, shifted": Format(np.uint16, np.float32, np.uint16, False),
    "bfloat16, pairs": Format(np.uint16, np.uint16, np.uint16, True),
}


def run(qkv, heads, width, real, cuts, kind, threads=2):
    """Attention of qkv (B, T, H 3 K) through the cache, in chunks that end at `cuts`: (B, T, H K)."""
    form = KINDS[kind]
    if form.paired and not HAS_BF16_DOT:
        pytest.skip("this processor, or BLOOMREF_NUMBA_ISA, has no product of bfloat16 pairs")
    batch, time, _ = qkv.shape
    capacity = up(time)
    keys = np.zeros(batch * heads * capacity * form.steps(width) * form.width, form.cache)
    values = np.zeros(batch * heads * capacity * up(width), form.cache)
    scratch = AttentionScratch(
        np.full((threads, scratch_floats(width)), np.nan, np.float32),
        np.full((threads, scratch_operands(form.steps(width), form.width)), 7, form.rows),
    )
    visible = np.zeros((batch, capacity), bool)
    visible[:, :time] = real
    cache = CacheView(keys, values, capacity, visible, visible.reshape(batch, -1, NR).all(-1))
    parts = []
    for a, b in pairwise(cuts):
        m, shape = batch * (b - a), CallShape(batch, b - a, a, heads, width)
        fused = np.ascontiguousarray(qkv[:, a:b]).reshape(m, -1)
        out = np.full(form.row_elements(m, heads * width), 7, form.rows)
        append(fused, shape, cache, out, threads)
        scratch.floats[:] = np.nan
        attend(fused, shape, cache, alibi.slopes(heads), PackedRows(out, m), scratch)
        parts.append(read_rows(form, out, m, heads * width).reshape(batch, b - a, -1))
    return np.concatenate(parts, 1)


def plain(qkv, heads, width, real, kind, work=np.float64):
    """softmax(q k / sqrt(K) + slope (j - i)) v over the real keys j <= i, with all T x T scores in memory.

    In float32, pairs also round their operands: queries and weights.
    """
    batch, time, _ = qkv.shape
    q, k, v = np.moveaxis(qkv.reshape(batch, time, heads, 3, width), (3, 2), (0, 2))
    dtype = ml_dtypes.bfloat16 if kind.startswith("bfloat16") else kind
    paired = kind == "bfloat16, pairs" and work == np.float32
    k, v = (x.astype(dtype).astype(work) for x in (k, v))
    q = q.astype(dtype) if paired else q
    j = np.arange(time)
    scores = q.astype(work) @ k.swapaxes(-1, -2) * work(width**-0.5)
    scores += (alibi.slopes(heads).astype(work)[:, None, None] * (j - j[:, None])).astype(work)
    visible = (j <= j[:, None]) & real[:, None, None, :] & real[:, None, :, None]
    weights = np.where(visible, np.exp(np.where(visible, scores - np.max(scores, -1, keepdims=True, where=visible,
                       initial=-1e30), 0)), 0)  # fmt: skip
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(dtype).astype(work) if paired else weights
    return (weights / np.where(total == 0, 1, total) @ v).swapaxes(1, 2).reshape(batch, time, -1)


def test_the_formula_keeps_the_heads_apart():
    """The interleave of the formula, by hand: head h, component c, lane k is column (3 h + c) K + k."""
    qkv = np.arange(18.0).reshape(1, 1, 18)
    assert plain(qkv, 2, 3, np.ones((1, 1), bool), "float32").tolist() == [[[6.0, 7.0, 8.0, 15.0, 16.0, 17.0]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "width", "time"),
    [(1, 1, 5), (3, 7, 40), (2, 16, 131), (9, 33, 30), (3, 64, 257), (2, 80, 128), (1, 96, 300), (12, 5, 129)],
)
def test_attention(heads, width, time, kind):
    """Within 4 times the largest error of the same formula in float32, and one rounding of the result."""
    rng = np.random.default_rng(time)
    qkv = rng.standard_normal((2, time, heads * 3 * width)).astype(np.float32)
    real = rng.random((2, time)) < 0.8
    exact = plain(qkv, heads, width, real, kind)
    narrow = plain(qkv, heads, width, real, kind, np.float32)
    got = run(qkv, heads, width, real, (0, time), kind)
    unit = 2.0**-8 if KINDS[kind].paired else 2.0**-24
    assert np.abs(got - exact).max() <= 4 * np.abs(narrow - exact).max() + unit * np.abs(exact).max()
    assert not got[~real].any()


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_threads_do_not_change_a_bit(kind):
    rng = np.random.default_rng(0)
    qkv, real = rng.standard_normal((2, 270, 5 * 3 * 33)).astype(np.float32), rng.random((2, 270)) < 0.9
    once = run(qkv, 5, 33, real, (0, 270), kind)
    for cuts in ((0, 1, 2, 14, 127, 128, 129, 255, 257, 260, 270), tuple(range(0, 271, 27))):
        assert run(qkv, 5, 33, real, cuts, kind, threads=1).tobytes() == once.tobytes()


def test_scores_of_every_size():
    """Neither a score of thousands nor rows without a visible key give NaN or infinity."""
    rng = np.random.default_rng(0)
    qkv = (rng.standard_normal((1, 200, 3 * 8)) * 300).astype(np.float32)
    real = np.ones((1, 200), bool)
    real[0, :50] = False
    got = run(qkv, 1, 8, real, (0, 200), "float32")
    np.testing.assert_allclose(got, plain(qkv, 1, 8, real, "float32"), rtol=0, atol=1e-3 * np.abs(qkv).max())
