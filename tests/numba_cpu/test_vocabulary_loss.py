"""The loss over blocks of the vocabulary, and products of heads shared among threads, against plain NumPy."""

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from accel.numba_cpu import blas
from accel.numba_cpu.training import vocabulary_loss
from bloomref.dtypes import floating_dtype


def dense(head: Any, x: Any, targets: Any) -> tuple[float, Any, Any]:
    """Loss and gradients in float64, with all logits at once."""
    logits = x.astype(float) @ head.astype(float).T
    shifted = logits - logits.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1)
    slopes = np.exp(shifted) / totals[:, None]
    rows = np.arange(len(x))
    losses = np.log(totals) - shifted[rows, targets]
    slopes[rows, targets] -= 1.0
    slopes /= len(x)
    return losses.mean(), slopes @ head.astype(float), slopes.T @ x.astype(float)


@pytest.mark.clause("GRD-2", "GRD-3", "GRD-8")
@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from(("float32", "bfloat16", "float16")),
    st.sampled_from((1.0, 30.0)),
)
def test_a_loss_over_blocks_is_that_over_the_whole_vocabulary(seed, tokens, block, rows, dtype, scale):
    """Also where the largest logit, or the target, is in a later block. The error is a few roundings of the terms."""
    rng = np.random.default_rng(seed)
    head = rng.standard_normal((tokens, 12)).astype(floating_dtype(dtype))
    x, targets = (scale * rng.standard_normal((rows, 12))).astype(np.float32), rng.integers(0, tokens, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_loss, "SMALLEST_BLOCK", block)
        patch.setattr(vocabulary_loss, "LOGIT_BYTES", 0)
        loss, dx, dhead = vocabulary_loss.loss_and_gradients(head, x, targets, True)
        frozen = vocabulary_loss.loss_and_gradients(head, x, targets, False)
    truth = dense(head, x, targets)
    slack = 2.0**-19 * scale  # logits of that size are rounded before they are exponents
    assert abs(loss - truth[0]) <= slack * max(1.0, scale)
    assert np.abs(dx - truth[1]).max() <= slack * scale * np.abs(head.astype(float)).max()
    assert np.abs(dhead - truth[2]).max() <= slack * scale * np.abs(x).max()
    assert frozen[:2] == (loss, pytest.approx(dx, abs=0.0))
    assert frozen[2] is None


def test_no_target_gives_no_loss():
    """GRD-2: the mean of no tokens is 0, and so are the gradients."""
    loss, dx, dhead = vocabulary_loss.loss_and_gradients(
        np.ones((3, 4), np.float32), np.empty((0, 4), np.float32), np.empty(0, int), True
    )
    assert loss == 0.0
    assert dx.shape == (0, 4)
    assert not dhead.any()


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_products_of_heads_are_those_of_numpy(heads, monkeypatch):
    """Shared among threads, on views that are not contiguous; the number of threads of BLAS is restored."""
    fused = np.random.default_rng(heads).standard_normal((2, 7, heads, 3, 4)).astype(np.float32)
    query, key, value = (fused[:, :, :, c].swapaxes(1, 2) for c in range(3))
    monkeypatch.setattr(blas, "FEW", 0)
    monkeypatch.setattr(blas, "thread_count", lambda: 2)
    out = np.empty((2, 7, heads, 4), np.float32)
    with blas._pools().limit(limits=2):
        scores = blas.of_heads(query, key.swapaxes(-1, -2), np.empty((2, heads, 7, 7), np.float32))
        blas.of_heads(scores, value, out.swapaxes(1, 2))
        assert blas_threads() == {2}
    expected = query.astype(float) @ key.swapaxes(-1, -2).astype(float) @ value.astype(float)
    assert np.allclose(out.swapaxes(1, 2), expected, rtol=1e-5, atol=1e-5)


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in blas._pools().info()}


def test_two_trainings_at_a_time_leave_the_threads_of_blas_as_they_were(monkeypatch):
    monkeypatch.setattr(blas, "FEW", 0)
    monkeypatch.setattr(blas, "thread_count", lambda: 2)
    a = np.ones((1, 4, 3, 3), np.float32)

    def train() -> None:
        for _ in range(20):
            with blas.limited():
                blas.of_heads(a, a, np.empty_like(a))

    both = [threading.Thread(target=train) for _ in range(2)]
    with blas._pools().limit(limits=2):
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert blas_threads() == {2}
