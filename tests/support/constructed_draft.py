"""A draft whose acceptance is set by construction, and a pace without a rule."""

from collections.abc import Sequence

import numpy as np

from bloomref.generation.pace import Pace
from bloomref.generation.task import Draft, Proposals, Row, Task


class ErraticPace(Pace):
    """Any number of proposals, pass by pass."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)

    def count(self, rows: int, most: int) -> int:  # noqa: ARG002
        return int(self._random.integers(0, max(0, min(most, 6)) + 1))


class ConstructedDraft(Draft):
    """Proposes the true continuation of each row; each token is another one with the probability 1 - p.

    Args:
        truth: new ids of each sequence.
        complete: False: it proposes fewer tokens than it is asked for, as often as not.
    """

    def __init__(
        self, truth: Sequence[Sequence[int]], p: float, vocabulary_size: int, seed: int, complete: bool = True
    ) -> None:
        super().__init__()
        self._truth, self._p, self._size, self._complete = truth, p, vocabulary_size, complete
        self._random = np.random.default_rng(seed)

    def open(self, task: Task) -> Proposals:  # noqa: ARG002
        return _Constructed(self)

    def propose(self, row: Row, count: int) -> list[int]:
        place = len(row.new_ids)
        if not self._complete:
            count = int(self._random.integers(0, count + 1))
        proposed = []
        for true in [*self._truth[row.index], *[0] * count][place : place + count]:
            wrong = self._random.random() >= self._p
            proposed.append((true + int(self._random.integers(1, self._size))) % self._size if wrong else true)
        return proposed


class _Constructed(Proposals):
    def __init__(self, draft: ConstructedDraft) -> None:
        self._draft = draft

    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        return [self._draft.propose(row, count) for row, count in zip(rows, counts, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Nothing: rows keep their numbers."""
