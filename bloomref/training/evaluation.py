"""Loss on held-out documents, computed by the model's backend."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Float, Int
from bloomref.training.packing import Batch, Piece, lay_out

if TYPE_CHECKING:
    from bloomref.runtime.engine import Engine

_LOGITS = 1 << 26  # elements of logits at a time


def in_rows(pieces: Sequence[Piece], rows: int, pad_id: int) -> list[Batch]:
    """Batches of at most `rows` rows with one chunk each. Chunks of similar length share a batch."""
    ordered = sorted(pieces, key=lambda piece: -len(piece.token_ids))
    return [lay_out([[piece] for piece in ordered[i : i + rows]], pad_id) for i in range(0, len(ordered), rows)]


def mean_loss(engine: "Engine", batches: Sequence[Batch]) -> float:
    """Mean loss in nats per predicted token, without dropout. Clause: TRN-7."""
    return float(np.concatenate([token_losses(engine, batch) for batch in batches]).mean(dtype=np.float64))


def token_losses(engine: "Engine", batch: Batch) -> Float[Array, " N"]:
    """Loss in nats of each token that counts, row by row. Each row is one document."""
    hidden = engine.hidden(TokenBatch(batch.token_ids, batch.is_real))
    targets = batch.labels[:, 1:]
    counts = targets != IGNORED_LABEL
    states, labels = hidden[:, :-1][counts], targets[counts]
    step = max(1, _LOGITS // engine.config.vocabulary_size)
    parts = [slice(start, start + step) for start in range(0, len(labels), step)]
    return np.concatenate([_cross_entropy(engine.logits(states[None, part])[0], labels[part]) for part in parts])


def _cross_entropy(logits: Float[Array, "N V"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    peak = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(axis=-1))
    return total + peak[:, 0] - logits[np.arange(len(labels)), labels]
