"""Texts with their contexts: their token ids, and the first of these that is scored (SCO-2 ... SCO-5)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomref.errors import BloomrefWarning, invalid
from bloomref.generation.prompts import Request, read_request
from bloomref.generation.windows import Scored


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a model, as functions on texts.

    Args:
        vocabulary_size: V; ids are in [0, V).
        tokenize: ids of each text. Raises InvalidInput without a tokenizer.
        lost: the characters of a text for which the tokenizer has no tokens.
        start_id: id of `<s>`. Raises InvalidInput without one.
    """

    vocabulary_size: int
    tokenize: Callable[[list[str]], list[list[int]]]
    lost: Callable[[str], str]
    start_id: Callable[[], int]


def read_pairs(reader: Reader, text: object, context: object) -> tuple[list[Scored], bool]:
    """Every text behind its context, and whether the caller passed one text without a list around it.

    Raises:
        InvalidInput: names the argument and, in a list, the index: `text[3]`. BloomrefWarning: for characters that the
        tokenizer has no tokens for.
    """
    request = read_request("text", text, reader.vocabulary_size)
    contexts = _contexts(context, request, reader.vocabulary_size)
    names = ["text"] if request.is_single else [f"text[{i}]" for i in range(len(request.rows))]
    make = _joined_texts if request.kind == "text" else _joined_ids
    joined = zip(names, make(reader, names, request.rows, contexts), contexts, strict=True)
    items = [_item(name, ids, start, before is None, reader.vocabulary_size) for name, (ids, start), before in joined]
    return items, request.is_single


def _contexts(context: object, request: Request, vocabulary_size: int) -> list[Any]:
    """One context, or None, for each row."""
    count = len(request.rows)
    if context is None or count == 0:
        return [None] * count
    contexts = read_request("context", context, vocabulary_size)
    if contexts.kind != request.kind:
        raise invalid("context", f"{request.kind}, as in `text`", contexts.kind)
    if contexts.is_single or not contexts.rows:
        return (contexts.rows or [[]]) * count
    if request.is_single or len(contexts.rows) != count:
        raise invalid("context", f"one, or one for each of {count} in a list", f"{len(contexts.rows)}")
    return contexts.rows


def _joined_texts(
    reader: Reader, names: Sequence[str], texts: Sequence[str], contexts: Sequence[str | None]
) -> list[tuple[list[int], int]]:
    """The ids of each whole, and the first that the context alone does not explain (SCO-3)."""
    wholes = [(context or "") + text for text, context in zip(texts, contexts, strict=True)]
    for name, whole in zip(names, wholes, strict=True):
        _check_text(reader, name, whole)
    befores = sorted({context.rstrip() for context in contexts if context is not None})
    ids_of = dict(zip(befores, reader.tokenize(befores), strict=True))
    pairs = []
    for ids, context in zip(reader.tokenize(wholes), contexts, strict=True):
        if context is None:
            pairs.append((ids, 1))
            continue
        start = _common(ids, ids_of[context.rstrip()])
        pairs.append((ids, start) if start else ([reader.start_id(), *ids], 1))
    return pairs


def _check_text(reader: Reader, name: str, whole: str) -> None:
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise invalid(name, "valid Unicode", repr(whole[error.start])) from None
    if lost := reader.lost(whole):
        warnings.warn(f"{name}: the tokenizer has no token for {lost!r}, not scored", BloomrefWarning, stacklevel=5)


def _joined_ids(
    reader: Reader, _names: Sequence[str], rows: Sequence[list[int]], contexts: Sequence[list[int] | None]
) -> list[tuple[list[int], int]]:
    pairs = []
    for ids, context in zip(rows, contexts, strict=True):
        before = [ids[0]] if context is None and ids else context or [reader.start_id()]
        pairs.append((ids if context is None else before + ids, len(before)))
    return pairs


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    both = enumerate(zip(ids, others, strict=False))
    return next((i for i, (a, b) in both if a != b), min(len(ids), len(others)))


def _item(name: str, ids: list[int], start: int, is_alone: bool, vocabulary_size: int) -> Scored:
    """Refuse a text without a token to score (SCO-5), and ids of a tokenizer that is not the model's."""
    if len(ids) <= start:
        got, hint = "none", ""
        if is_alone and ids:
            got = "one, which no token predicts"
            hint = 'an empty context predicts it from <s>: context="" (--context "")'
        raise invalid(name, "at least one token to score", got, hint)
    if max(ids) >= vocabulary_size:
        expected = f"tokens with ids in [0, {vocabulary_size}), as the model has"
        raise invalid(name, expected, max(ids), "the tokenizer is of another model")
    return Scored(name, np.asarray(ids, np.int64), start)
