"""Prompts: read from what callers pass (texts or token ids, one or many), and padded into one batch."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np

from bloomref.errors import invalid
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Bool, Int

_MESSAGES = "tokenizer.apply_chat_template(messages, add_generation_prompt=True) gives their ids"
_EXPECTED = "a text, a list of texts, a list of token ids, or a list of such lists"


# --- what callers pass -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A caller's input as a list of rows.

    Args:
        kind: what every row is.
        rows: texts, or lists of token ids.
        is_single: True if the caller passed one row without a list around it.
    """

    kind: Literal["text", "ids"]
    rows: list[Any]
    is_single: bool


def read_request(name: str, value: object, vocabulary_size: int) -> Request:
    """Distinguish texts from token ids, and one row from many. An empty list is an empty batch.

    Args:
        name: the argument that error messages name.

    Raises:
        InvalidInput: for any other input, and for ids outside the vocabulary.
    """
    if isinstance(value, str):
        return Request("text", [value], True)
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind not in "iuOUT":
        raise invalid(name, _EXPECTED, f"an array of {value.dtype.name}")
    items = _as_list(value)
    if items is None:
        raise invalid(name, _EXPECTED, value)
    if any(isinstance(item, str) for item in items):
        if strays := [i for i, item in enumerate(items) if not isinstance(item, str)]:
            raise invalid(f"{name}[{strays[0]}]", "a text, as the others are", items[strays[0]])
        return Request("text", items, False)
    if items and isinstance(items[0], Mapping):
        raise invalid(name, _EXPECTED, "messages", _MESSAGES)
    nested = [_as_list(item) for item in items]
    if items and all(row is None for row in nested):
        return Request("ids", [check_ids(name, items, vocabulary_size)], True)
    if strays := [i for i, row in enumerate(nested) if row is None]:
        raise invalid(f"{name}[{strays[0]}]", "a list of token ids, as the others are", items[strays[0]])
    rows = [check_ids(f"{name}[{i}]", row or [], vocabulary_size) for i, row in enumerate(nested)]
    return Request("ids", rows, False)


def check_ids(name: str, ids: Sequence[Any], vocabulary_size: int) -> list[int]:
    """The ids as `int`s.

    Raises:
        InvalidInput: for an id that is not an integer in [0, vocabulary_size).
    """
    for token_id in ids:
        if isinstance(token_id, (bool, np.bool_)) or not isinstance(token_id, Integral):
            raise invalid(name, "integers as token ids", token_id)
        if not 0 <= int(token_id) < vocabulary_size:
            raise invalid(name, f"ids in [0, {vocabulary_size}), the vocabulary of this model", token_id)
    return [int(token_id) for token_id in ids]


def _as_list(value: object) -> list[Any] | None:
    """The elements of a sequence or an array; None for a text, a mapping or a scalar."""
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else None
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return None


# --- prompts and batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids of one row, without the padding around them. A masked position inside keeps its place (ALI-4)."""

    token_ids: Int[Array, " T"]
    is_real: Bool[Array, " T"]

    @classmethod
    def of(cls, token_ids: Sequence[int] | Int[Array, " T"]) -> "Prompt":
        """A prompt of real tokens."""
        return cls(np.asarray(token_ids, np.int64), np.ones(len(token_ids), bool))

    def followed_by(self, token_ids: Sequence[int]) -> "Prompt":
        """This prompt with real tokens appended."""
        more = Prompt.of(token_ids)
        ids = np.concatenate([self.token_ids, more.token_ids])
        return Prompt(ids, np.concatenate([self.is_real, more.is_real]))

    @property
    def real_ids(self) -> list[int]:
        """The ids that are not masked."""
        return [int(token_id) for token_id in self.token_ids[self.is_real]]

    def __len__(self) -> int:
        return len(self.token_ids)


def trim(batch: TokenBatch) -> list[Prompt]:
    """Rows of a padded batch, each from its first to its last real token; a row of padding becomes an empty prompt."""
    prompts = []
    for ids, real in zip(batch.token_ids, batch.is_real, strict=True):
        positions = np.flatnonzero(real)
        span = slice(positions[0], positions[-1] + 1) if positions.size else slice(0)
        prompts.append(Prompt(ids[span], real[span]))
    return prompts


def left_pad(prompts: Sequence[Prompt]) -> TokenBatch:
    """One batch in which every prompt ends at the last position; padding has id 0."""
    width = max(map(len, prompts))
    token_ids = np.zeros((len(prompts), width), np.int64)
    is_real = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        token_ids[row, width - len(prompt) :] = prompt.token_ids
        is_real[row, width - len(prompt) :] = prompt.is_real
    return TokenBatch(token_ids, is_real)


def right_pad(prompts: Sequence[Prompt], pad_id: int) -> TokenBatch:
    """One batch in which every prompt begins at the first position."""
    width = max(map(len, prompts), default=0)
    token_ids = np.full((len(prompts), width), pad_id, np.int64)
    is_real = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt.token_ids
        is_real[row, : len(prompt)] = prompt.is_real
    return TokenBatch(token_ids, is_real)


POSITIONS_AT_ONCE = 4096
"""Padded positions of one batch: enough for efficient matrix products, and small temporaries."""


def by_length(rows: Sequence[Sized]) -> list[list[int]]:
    """Indices of the rows, shortest first, in groups of at most `POSITIONS_AT_ONCE` padded positions."""
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if groups and (len(groups[-1]) + 1) * len(rows[i]) <= POSITIONS_AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
