"""Documents into rows of a fixed number of positions, several short ones side by side, without a look across."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.shapes import Array, Bool, Int
from bloomref.training.documents import Document


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens. A label is the column's own token, to be predicted from the columns before it, or IGNORED_LABEL.

    `document` numbers the documents of a row; a position sees the earlier ones of its own number only, and the first of
    each is not predicted. None: a row is one document.
    """

    token_ids: Int[Array, "B T"]
    is_real: Bool[Array, "B T"]
    labels: Int[Array, "B T"]
    document: Int[Array, "B T"] | None = None

    @classmethod
    def of_windows(cls, token_ids: Int[Array, "B T"]) -> "Batch":
        """Rows of consecutive tokens, of which each but the first is predicted."""
        return cls(token_ids, np.ones(token_ids.shape, bool), token_ids)


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive tokens of one document, and their labels; the first is not predicted."""

    token_ids: Int[Array, " T"]
    labels: Int[Array, " T"]


def cut(documents: Sequence[Document], context: int) -> list[Piece]:
    """The documents in pieces of at most `context` tokens. Clause: TRN-5.

    A piece begins with the last token of the one before, so that every token but a document's first is predicted once.
    A piece that nothing is to be learned from is left out.
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
    """Indices into rows of `room`: the longest first, each where it leaves the least room.

    Among equals, order decides.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (room left, row), sorted
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
    """One batch, as wide as its longest row. Padding stands right and has document -1. Clause: TRN-6."""
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
