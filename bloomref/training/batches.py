"""Sources of batches. A batch is a function of its index, so one integer is the position of a run in the data."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Protocol

import numpy as np

from bloomref.errors import invalid
from bloomref.shapes import Array
from bloomref.training.documents import Document
from bloomref.training.packing import Batch, Piece, best_fit, cut, lay_out
from bloomref.training.settings import Settings


class BatchSource(Protocol):
    """Source of batches: a function from an index >= 0 to a batch, the same one at every call."""

    def __call__(self, index: int, /) -> Batch: ...


class Packed:
    """Endless batches of packed documents. Each epoch is shuffled and packed anew. Clauses: TRN-5 ... TRN-8.

    Args:
        documents: the training documents.
        settings: of the run; `batch`, `context` and `seed` decide the batches.
        pad_id: token id at padded positions.

    Raises:
        InvalidInput: when no token counts in the loss.
    """

    def __init__(self, documents: Sequence[Document], settings: Settings, pad_id: int) -> None:
        self._pieces = cut(documents, settings.context)
        if not self._pieces:
            hint = (
                "with completion_only, a prompt longer than context leaves nothing" if settings.completion_only else ""
            )
            raise invalid("data", "at least one token to predict", "none", hint)
        self._settings, self._pad_id = settings, pad_id
        self._rows = lru_cache(maxsize=2)(self._pack)
        self.rows_per_epoch = len(self._rows(0))

    def __call__(self, index: int, /) -> Batch:
        return lay_out([self._row(index * self._settings.batch + i) for i in range(self._settings.batch)], self._pad_id)

    def _row(self, number: int) -> list[Piece]:
        epoch, within = divmod(number, self.rows_per_epoch)
        return self._rows(epoch)[within]

    def _pack(self, epoch: int) -> list[list[Piece]]:
        rng = np.random.default_rng([self._settings.seed, 0, epoch])
        order = [self._pieces[i] for i in rng.permutation(len(self._pieces))]
        rows = best_fit([len(piece.token_ids) for piece in order], self._settings.context)
        return [[order[i] for i in rows[row]] for row in rng.permutation(len(rows))]

    @property
    def steps_per_epoch(self) -> float:
        """Number of updates in one epoch."""
        return self.rows_per_epoch / (self._settings.batch * self._settings.accumulate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens and labels, in order."""
        return fingerprint([array for piece in self._pieces for array in (piece.token_ids, piece.labels)])


class Replayed:
    """Batches of an iterable that yields the same batches at each iteration.

    A resumed run skips the batches before its first step.

    Args:
        batches: an iterable that can be iterated more than once, such as a list.

    Raises:
        InvalidInput: when `batches` is an iterator, or ends before the last step.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        if iter(batches) is batches:
            hint = "pass a list, or a function of the batch's number"
            raise invalid("data", "batches that can be iterated more than once", type(batches).__name__, hint)
        self._batches = batches
        self._iterator: Iterator[Batch] = iter(batches)
        self._next = 0

    def __call__(self, index: int, /) -> Batch:
        if index < self._next:
            self._iterator, self._next = iter(self._batches), 0
        batch = next(islice(self._iterator, index - self._next, None), None)
        if batch is None:
            raise invalid("data", f"at least {index + 1} batches", "fewer")
        self._next = index + 1
        return batch


def as_source(data: Callable[[int], Batch] | Iterable[Batch]) -> BatchSource:
    """Return a source of batches: `data` if it is a function, else a `Replayed` of the iterable."""
    return data if callable(data) else Replayed(data)


def steps_of(settings: Settings, source: BatchSource) -> int:
    """Number of updates of a run: `settings.steps`, or else the updates of `settings.epochs`.

    Raises:
        InvalidInput: when `settings.steps` is None and the source has no epochs.
    """
    if settings.steps is not None:
        return settings.steps
    if not isinstance(source, Packed):
        raise invalid("steps", "a number, for data without a length", "None")
    return max(1, math.ceil(settings.epochs * source.steps_per_epoch))


def fingerprint(arrays: Iterable[Array], text: str = "") -> str:
    """SHA-256 of a text, and of the arrays' shapes, dtypes and bytes."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.name};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def source_fingerprint(source: BatchSource) -> str:
    """SHA-256 of all data of a `Packed` source, or else of the first batch."""
    if isinstance(source, Packed):
        return source.fingerprint
    first = source(0)
    return fingerprint([first.token_ids, first.labels, first.is_real])
