"""Packing of documents into rows: long documents are cut into chunks, short ones share a row. Clauses: TRN-5, TRN-6."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.shapes import Array, Bool, Int
from bloomref.training.documents import Document


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens with their labels.

    Args:
        token_ids: token at each position.
        is_real: False at padded positions.
        labels: token at each position, not shifted, if it counts in the loss, or else IGNORED_LABEL.
        document: number of the document at each position. A position sees only its document, up to itself, and the
            first token of a document is not predicted. None: each row is one document.
    """

    token_ids: Int[Array, "B T"]
    is_real: Bool[Array, "B T"]
    labels: Int[Array, "B T"]
    document: Int[Array, "B T"] | None = None

    @classmethod
    def of_windows(cls, token_ids: Int[Array, "B T"]) -> "Batch":
        """Batch of rows of consecutive tokens. Every token but the first of a row is predicted."""
        return cls(token_ids, np.ones(token_ids.shape, bool), token_ids)


@dataclass(frozen=True, eq=False)
class Piece:
    """Chunk of a document: consecutive tokens and their labels. The first token is not predicted."""

    token_ids: Int[Array, " T"]
    labels: Int[Array, " T"]


def cut(documents: Sequence[Document], context: int) -> list[Piece]:
    """Cut documents into chunks of at most `context` tokens. Clause: TRN-5.

    A chunk begins with the last token of the one before it, so every token but a document's first is predicted once.
    Chunks in which no token counts are dropped.
    """
    return [
        piece for document in documents for piece in _cut(document, context) if (piece.labels != IGNORED_LABEL).any()
    ]


def _cut(document: Document, context: int) -> Iterator[Piece]:
    for start in range(0, len(document.token_ids) - 1, context - 1):
        ids = document.token_ids[start : start + context]
        labels = np.where(document.is_target[start : start + context], ids, IGNORED_LABEL)
        labels[0] = IGNORED_LABEL
        yield Piece(ids, labels)


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack lengths into rows by best fit, in order of decreasing length.

    Each length goes to the row in which it leaves the least space. Of equal lengths, the first comes first.

    Args:
        lengths: the lengths, each at most `room`.
        room: capacity of a row.

    Returns:
        Rows of indices into `lengths`.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free space, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(spaces, (lengths[index], -1))
        if place == len(spaces):
            rows.append([])
            spaces.append((room, len(rows) - 1))
        left, row = spaces.pop(place)
        rows[row].append(index)
        insort(spaces, (left - lengths[index], row))
    return rows


def lay_out(rows: Sequence[Sequence[Piece]], pad_id: int) -> Batch:
    """Return one batch, as wide as its longest row, padded on the right. Clause: TRN-6.

    Args:
        rows: the chunks of each row.
        pad_id: token id at padded positions, whose document number is -1.
    """
    width = max(sum(len(piece.token_ids) for piece in row) for row in rows)
    batch = Batch(
        np.full((len(rows), width), pad_id, np.int64),
        np.zeros((len(rows), width), bool),
        np.full((len(rows), width), IGNORED_LABEL, np.int64),
        np.full((len(rows), width), -1, np.int64),
    )
    for index, row in enumerate(rows):
        _fill(batch, index, row)
    return batch


def _fill(batch: Batch, index: int, row: Sequence[Piece]) -> None:
    assert batch.document is not None
    start = 0
    for number, piece in enumerate(row):
        where = (index, slice(start, start := start + len(piece.token_ids)))
        batch.token_ids[where], batch.labels[where] = piece.token_ids, piece.labels
        batch.is_real[where], batch.document[where] = True, number
