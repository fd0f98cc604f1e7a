"""The forms in which callers hand in text: one or many, as strings or as token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np

from bloomref.errors import invalid

_EXPECTED = "a text, a list of texts, a list of token ids, or a list of such lists"


@dataclass(frozen=True)
class Request:
    """What came in, as rows of one kind, and whether it was a single row."""

    kind: Literal["text", "ids"]
    rows: list[Any]
    is_single: bool


def read_request(name: str, value: object, vocabulary_size: int) -> Request:
    """Tell texts from ids and one from many. An empty list is an empty batch.

    Raises:
        InvalidInput: naming the argument, for anything else, and for ids that the vocabulary does not have.
    """
    if isinstance(value, str):
        return Request("text", [value], True)
    items = _listed(value)
    if items is None:
        raise invalid(name, _EXPECTED, value)
    if any(isinstance(item, str) for item in items):
        if not all(isinstance(item, str) for item in items):
            raise invalid(name, "a list of texts alone", items)
        return Request("text", items, False)
    nested = [_listed(item) for item in items]
    if items and all(row is None for row in nested):
        return Request("ids", [check_ids(name, items, vocabulary_size)], True)
    if any(row is None for row in nested):
        raise invalid(name, _EXPECTED, items)
    return Request("ids", [check_ids(name, row or [], vocabulary_size) for row in nested], False)


def check_ids(name: str, ids: Sequence[Any], vocabulary_size: int) -> list[int]:
    for token_id in ids:
        if isinstance(token_id, (bool, np.bool_)) or not isinstance(token_id, Integral):
            raise invalid(name, "integers as token ids", token_id)
        if not 0 <= int(token_id) < vocabulary_size:
            raise invalid(name, f"ids in [0, {vocabulary_size}), the vocabulary of this model", token_id)
    return [int(token_id) for token_id in ids]


def _listed(value: object) -> list[Any] | None:
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else None
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return None
