"""The drafts: prompt lookup, which copies from the text itself, and a model that is smaller than the one it serves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bloomref.errors import invalid
from bloomref.generation.chooser import Chooser
from bloomref.generation.embedded_prompts import EmbeddedPrompt
from bloomref.generation.task import Draft, Proposals, Row, Task
from bloomref.runtime.engine import Engine

LONGEST_NGRAM = 3


class PromptLookup(Draft):
    """Proposes what followed the last tokens of a row where they stood before, in the prompt or in the continuation.

    Source: prompt lookup decoding (Saxena 2023); the longest n-gram of up to three tokens, at its latest place.
    """

    def open(self, task: Task) -> Proposals:  # noqa: ARG002
        return _Lookup()


class _Lookup(Proposals):
    def __init__(self) -> None:
        self._indices: dict[int, _Index] = {}

    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        return [self._of(row).continuation(row.history, count) for row, count in zip(rows, counts, strict=True)]

    def _of(self, row: Row) -> "_Index":
        return self._indices.setdefault(row.index, _Index())

    def select(self, indices: Sequence[int]) -> None:
        """Nothing: rows keep their numbers."""


class _Index:
    """Where each n-gram of a row ends, and another token follows it."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def continuation(self, history: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens; none if the last token is new. A copy that reaches its own beginning goes round."""
        self._extend(history)
        for size in range(min(LONGEST_NGRAM, len(history)), 0, -1):
            end = self._ends.get(tuple(history[-size:]))
            if end is not None:
                period = len(history) - end
                return [history[end + i % period] for i in range(count)]
        return []

    def _extend(self, history: Sequence[int]) -> None:
        for end in range(self._indexed + 1, len(history)):
            for size in range(1, min(LONGEST_NGRAM, end) + 1):
                self._ends[tuple(history[end - size : end])] = end
        self._indexed = max(self._indexed, len(history) - 1)


class ModelDraft(Draft):
    """A model that proposes what it would choose itself, with the same options and the same numbers of the draws.

    Args:
        engine: of a model with the ids of the one that it serves, on any backend.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def open(self, task: Task) -> Proposals:
        """Read the prompts.

        Raises:
            InvalidInput: for a model with another number of ids, or prompts of vectors. Unsupported: without the memory
            for its cache.
        """
        size = task.engine.config.vocabulary_size
        if self._engine.config.vocabulary_size != size:
            raise invalid("draft", f"a model with the same {size} ids", f"{self._engine.config.vocabulary_size} ids")
        if any(isinstance(prompt, EmbeddedPrompt) for prompt in task.prompts):
            raise invalid("draft", "'prompt' with inputs_embeds, which have no ids for another model", "a model")
        return _OfModel(replace(task, engine=self._engine, prefix=None, draft=None))


class _OfModel(Proposals):
    """The draft's own cache has the columns of the model's: new token i of every row stands in the same column."""

    def __init__(self, task: Task) -> None:
        task.check_memory()
        self._chooser, self._decoder = Chooser(task), task.decoder()
        self._first, self._read = self._decoder.position, 0

    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """Tokens for the columns behind the shortest row, column by column; other rows know some of them already."""
        known = min(len(row.new_ids) for row in rows)
        self._decoder.rewind(self._first + self._read)  # behind it are earlier proposals
        self._decoder.append(np.array([row.new_ids[self._read : known] for row in rows], np.int64))
        self._read = known
        proposals: list[list[int]] = [[] for _ in rows]
        for place in range(known, known + max(counts)):
            if place > known:
                self._decoder.append(np.array([[_at(r, p, place - 1)] for r, p in zip(rows, proposals, strict=True)]))
            for i, row in enumerate(rows):
                if place < len(row.new_ids):
                    continue
                token_id = self._chooser.token(row, proposals[i], self._decoder.logits()[i])
                if token_id is None:
                    return proposals
                proposals[i].append(token_id)
        return proposals

    def select(self, indices: Sequence[int]) -> None:
        self._decoder.select(indices)


def _at(row: Row, proposed: Sequence[int], place: int) -> int:
    """New token `place` of the row, or of what is proposed behind it."""
    new = row.new_ids
    return new[place] if place < len(new) else proposed[place - len(new)]
