"""Cross-entropy of the next token, and its gradient. Clauses: GRD-1, GRD-2, GRD-8."""

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.shapes import Array, Bool, Float, Int

_LOGIT_BYTES = 2**28  # of the logits that exist at a time: 267 positions in float32 at BLOOM's 250,880 tokens
_PRODUCT_BYTES = 2**26  # of a slice of the product that is added to the head's gradient


def targets(
    token_ids: Int[Array, "B T"],
    is_real: Bool[Array, "B T"],
    labels: Int[Array, "B T"] | None,
    document: Int[Array, "B T"] | None,
) -> Int[Array, "B T"]:
    """The token that each position predicts: the label of the next column, or IGNORED_LABEL (GRD-1).

    Args:
        labels: the token at each column; None: `token_ids`.
        document: a position whose next column is of another document predicts nothing; None: one document.
    """
    counts = is_real[:, :-1] & is_real[:, 1:]
    if document is not None:
        counts &= document[:, :-1] == document[:, 1:]
    predicted = np.full(token_ids.shape, IGNORED_LABEL, np.int64)
    predicted[:, :-1] = np.where(counts, (token_ids if labels is None else labels)[:, 1:], IGNORED_LABEL)
    return predicted


def cross_entropy(logits: Float[Array, "N V"], target: Int[Array, " N"]) -> tuple[float, Float[Array, "N V"]]:
    """Sum over the rows of log(sum of exp(logits)) - logits[target],
    and its gradient, softmax(logits) - one_hot(target).

    The gradient overwrites `logits`, which is the largest array of a training step.
    """
    rows = np.arange(len(target))
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[rows, target]
    np.exp(logits, out=logits)
    total = logits.sum(axis=-1)
    logits /= total[:, None]
    logits[rows, target] -= 1.0
    return float((np.log(total) - chosen).sum(dtype=np.float64)), logits


def head_vjp(
    hidden: Float[Array, "N D"], head: Float[Array, "V D"], target: Int[Array, " N"], dhead: Float[Array, "V D"] | None
) -> tuple[float, Float[Array, "N D"]]:
    """The mean cross-entropy of logits = hidden head^T, and its gradient by `hidden`.

    Rows run in chunks, forwards and backwards, so that the logits of all positions never exist at once.

    Args:
        dhead: the gradient by the head is added to it; None: it is not computed.
    """
    total, dhidden = 0.0, np.empty_like(hidden)
    step = max(1, _LOGIT_BYTES // (len(head) * hidden.itemsize))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        part, dlogits = cross_entropy(hidden[rows] @ head.T, target[rows])
        total += part
        dlogits /= len(hidden)
        dhidden[rows] = dlogits @ head
        if dhead is not None:
            _add_product(dhead, dlogits, hidden[rows])
    return total / max(1, len(hidden)), dhidden


def _add_product(total: Float[Array, "V D"], dlogits: Float[Array, "N V"], hidden: Float[Array, "N D"]) -> None:
    """total += dlogits^T hidden, in slices of the vocabulary: the product alone is as large as the head."""
    step = max(1, _PRODUCT_BYTES // (total.shape[1] * total.itemsize))
    for start in range(0, len(total), step):
        entries = slice(start, start + step)
        total[entries] += dlogits[:, entries].T @ hidden
