"""The public API, `Model.call`: arguments that it must accept, and arguments that it must refuse."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.rerun import call, same, verdict
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Raised, Subject
from bloomref.errors import Unsupported
from bloomref.shapes import Array

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = ("bool", "int8", "int64", "uint8", "float32", "float64")


def masks(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Pass the mask in every numeric dtype, and no mask where it is all ones."""
    expected = call(subject, case, case.token_ids, case.is_real.astype(np.int64))
    for dtype in NUMBERS:
        other = call(subject, case, case.token_ids, case.is_real.astype(dtype))
        yield same(subject, case, expected, other, f"a mask of dtype {dtype}")
    if case.is_real.all():
        yield same(subject, case, expected, call(subject, case, case.token_ids, None), "no mask")


def id_dtypes(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Pass the token ids in every integer dtype that can represent them."""
    expected = call(subject, case, case.token_ids, case.is_real)
    for dtype in INTEGERS:
        if case.config.vocabulary_size <= np.iinfo(dtype).max:
            other = call(subject, case, case.token_ids.astype(dtype), case.is_real)
            yield same(subject, case, expected, other, f"token ids of dtype {dtype}")


def empty(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Pass an empty batch, and rows without positions."""
    for shape in ((0, case.time), (case.batch, 0)):
        output = call(subject, case, np.zeros(shape, np.int64), None).shape
        expected = (*shape, case.config.vocabulary_size)
        text = f"token ids of shape {shape}: expected logits of shape {expected}, got {output}"
        yield verdict(output == expected, text)


def refusals(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Pass each illegal argument: the implementation must raise."""
    for what, token_ids, padding_mask in illegal(case):
        yield verdict(
            _refuses(subject, case, token_ids, padding_mask), f"{what}: accepted; the specification refuses it"
        )


def illegal(case: Case) -> Iterable[tuple[str, Any, Any]]:
    """Yield (description, token_ids, padding_mask) of illegal calls."""
    ids, ones = case.token_ids, np.ones(case.token_ids.shape, np.int64)
    vocabulary = case.config.vocabulary_size
    for wrong in (-1, vocabulary, vocabulary - 1 + 2**32):
        yield f"a token id of {wrong} in a vocabulary of {vocabulary}", _with(ids, wrong), ones
    yield "token ids of a floating dtype", ids + 0.5, ones
    yield "token ids without a batch axis", ids[0], ones[0]
    yield "a mask value of 2", ids, _with(ones, 2)
    yield "a mask value of 0.3", ids, _with(ones.astype(np.float64), 0.3)
    yield "a mask shorter than the token ids", ids, ones[:, :-1]
    yield "a mask longer than the token ids", ids, np.pad(ones, ((0, 0), (0, 1)), constant_values=1)


def _with(values: Array, last: float) -> Array:
    changed = values.copy()
    changed[-1, -1] = last
    return changed


def _refuses(subject: Subject, case: Case, token_ids: Any, padding_mask: Any) -> bool:
    try:
        subject.ask(case, "call", token_ids, padding_mask)
    except (Raised, Unsupported):
        return True
    return False
