"""Where batches come from: a function of their number, so that the place in the data is one integer."""

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
    """Batch number `index`, the same at every call. A plain function `index -> Batch` is one."""

    def __call__(self, index: int, /) -> Batch: ...


class Packed:
    """Endless batches of packed documents;
    every pass over the data is shuffled and packed anew. Clauses: TRN-5 ... TRN-8.

    Raises:
        InvalidInput: when there is nothing to learn.
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
        return self.rows_per_epoch / (self._settings.batch * self._settings.accumulate)

    @property
    def fingerprint(self) -> str:
        """Of every token and label, in order."""
        return fingerprint([array for piece in self._pieces for array in (piece.token_ids, piece.labels)])


class Replayed:
    """Batches of an iterable that yields the same ones each time it is asked for an iterator.

    A resumed run passes over what was learned already.

    Raises:
        InvalidInput: when it ends too early, or can be asked only once.
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
    """A function as it is, an iterable replayed."""
    return data if callable(data) else Replayed(data)


def steps_of(settings: Settings, source: BatchSource) -> int:
    """Number of updates of a run.

    Raises:
        InvalidInput: when neither the settings nor the source know.
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
    """Of the data where the source knows all of it, else of its first batch."""
    if isinstance(source, Packed):
        return source.fingerprint
    first = source(0)
    return fingerprint([first.token_ids, first.labels, first.is_real])
