"""The loss over the vocabulary and its gradients, a block of tokens at a time, in float32.

The gradient by the hidden states is a mean of the head's rows, weighted by the softmax, minus the target's row. The
mean is computed as attention is: over blocks, by the online softmax (Milakov & Gimelshein, "Online normalizer
calculation for softmax", arXiv:1805.02867), so that each block of the head is read once, and its logits stay in a
cache. If the head is trained, its gradient needs the final softmax: a second pass computes the logits again. The first
pass does not depend on it (GRD-6). Clauses: GRD-2, GRD-3, GRD-8.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from accel.numba_cpu.training import kernels
from accel.numba_cpu.weight_packing import widened

LOGIT_BYTES = 1 << 22  # of the logits of one block of tokens: they stay in a cache
SMALLEST_BLOCK = 256  # tokens: a product of fewer is slow


def loss_and_gradients(head: Any, x: Any, targets: Any, trains_head: bool) -> tuple[float, Any, Any]:
    """The mean loss, its gradient by x, and that by the head, or None.

    Args:
        head: (V, D), in any dtype.
        x: float32 (N, D), the normed hidden states of the positions with a target.
        targets: (N,), the token that each position predicts.
        trains_head: True to compute the gradient of the head.
    """
    count = max(1, len(x))
    peaks = np.full(len(x), np.finfo(np.float32).min)
    totals, chosen, sums, part = np.zeros(len(x)), np.zeros_like(peaks), np.zeros_like(x), np.empty_like(x)
    for first, rows, logits in _blocks(head, x):
        kernels.add_powers(logits, targets, first, peaks, totals, chosen, sums)
        kernels.add_rows(sums, np.matmul(logits, rows, out=part))
    losses = np.log(totals) + peaks - chosen
    weight = np.float32(1.0 / count)
    factors = (weight / totals).astype(np.float32)
    dx = sums * factors[:, None] - widened(head[targets]) * weight
    dhead = _gradient_of_head(head, x, targets, peaks, factors, weight) if trains_head else None
    return float(losses.sum()) / count, dx, dhead


def _gradient_of_head(head: Any, x: Any, targets: Any, peaks: Any, factors: Any, weight: Any) -> Any:
    dhead = np.empty(head.shape, np.float32)
    for first, rows, logits in _blocks(head, x):
        kernels.softmax_slopes(logits, targets, first, peaks, factors, weight)
        np.matmul(logits.T, x, out=dhead[first : first + len(rows)])
    return dhead


def _blocks(head: Any, x: Any) -> Iterator[tuple[int, Any, Any]]:
    """The first token of each block, the block's rows of the head in float32, and its logits (N, W), which the next
    block overwrites.
    """
    step = max(SMALLEST_BLOCK, LOGIT_BYTES // (4 * max(1, len(x))))
    buffer = np.empty(len(x) * min(step, len(head)), np.float32)
    for first in range(0, len(head), step):
        rows = widened(head[first : first + step])
        logits = buffer[: len(x) * len(rows)].reshape(len(x), len(rows))
        yield first, rows, np.matmul(x, rows.T, out=logits)
