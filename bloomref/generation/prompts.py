"""Prompts of different lengths, brought into one left-padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Bool, Int


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row without the padding around it. A hole inside stays: it keeps its column (ALI-4)."""

    token_ids: Int[Array, " T"]
    is_real: Bool[Array, " T"]

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> "Prompt":
        return cls(np.asarray(token_ids, np.int64), np.ones(len(token_ids), bool))

    def followed_by(self, token_ids: Sequence[int]) -> "Prompt":
        more = Prompt.of(token_ids)
        ids = np.concatenate([self.token_ids, more.token_ids])
        return Prompt(ids, np.concatenate([self.is_real, more.is_real]))

    @property
    def real_ids(self) -> list[int]:
        return [int(token_id) for token_id in self.token_ids[self.is_real]]

    def __len__(self) -> int:
        return len(self.token_ids)


def trim(batch: TokenBatch) -> list[Prompt]:
    """The rows of a padded batch, each from its first to its last real token; an all-padding row becomes empty."""
    prompts = []
    for ids, real in zip(batch.token_ids, batch.is_real, strict=True):
        columns = np.flatnonzero(real)
        span = slice(columns[0], columns[-1] + 1) if columns.size else slice(0)
        prompts.append(Prompt(ids[span], real[span]))
    return prompts


def left_pad(prompts: Sequence[Prompt]) -> TokenBatch:
    """One batch in which every prompt ends in the last column."""
    width = max(map(len, prompts))
    token_ids = np.zeros((len(prompts), width), np.int64)
    is_real = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        token_ids[row, width - len(prompt) :] = prompt.token_ids
        is_real[row, width - len(prompt) :] = prompt.is_real
    return TokenBatch(token_ids, is_real)


def right_pad(rows: Sequence[Prompt], pad_id: int) -> TokenBatch:
    """One batch in which every row begins in the first column."""
    width = max(map(len, rows), default=0)
    token_ids = np.full((len(rows), width), pad_id, np.int64)
    is_real = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row.token_ids
        is_real[i, : len(row)] = row.is_real
    return TokenBatch(token_ids, is_real)
