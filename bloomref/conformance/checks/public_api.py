"""Properties of the front door, `Model.call`: what it takes, what it refuses."""

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
    """0 and 1 mean the same in every type; no mask is all ones."""
    usual = call(subject, case, case.token_ids, case.is_real.astype(np.int64))
    for dtype in NUMBERS:
        other = call(subject, case, case.token_ids, case.is_real.astype(dtype))
        yield same(subject, case, usual, other, f"the mask as {dtype}")
    if case.is_real.all():
        yield same(subject, case, usual, call(subject, case, case.token_ids, None), "no mask")


def id_dtypes(subject: Subject, case: Case) -> Iterable[Judgement]:
    usual = call(subject, case, case.token_ids, case.is_real)
    for dtype in INTEGERS:
        if case.config.vocabulary_size <= np.iinfo(dtype).max:
            other = call(subject, case, case.token_ids.astype(dtype), case.is_real)
            yield same(subject, case, usual, other, f"ids as {dtype}")


def empty(subject: Subject, case: Case) -> Iterable[Judgement]:
    for shape in ((0, case.time), (case.batch, 0)):
        got = call(subject, case, np.zeros(shape, np.int64), None).shape
        wanted = (*shape, case.config.vocabulary_size)
        yield verdict(got == wanted, f"ids of shape {shape}: expected logits of shape {wanted}, got {got}")


def refusals(subject: Subject, case: Case) -> Iterable[Judgement]:
    for what, token_ids, padding_mask in illegal(case):
        yield verdict(
            _refuses(subject, case, token_ids, padding_mask), f"{what}: taken, where the specification refuses it"
        )


def illegal(case: Case) -> Iterable[tuple[str, Any, Any]]:
    """(what is wrong, token_ids, padding_mask)"""
    ids, ones = case.token_ids, np.ones(case.token_ids.shape, np.int64)
    vocabulary = case.config.vocabulary_size
    for wrong in (-1, vocabulary, vocabulary - 1 + 2**32):
        yield f"an id of {wrong} in a vocabulary of {vocabulary}", _with(ids, wrong), ones
    yield "ids that are floats", ids + 0.5, ones
    yield "a single row without a batch axis", ids[0], ones[0]
    yield "a mask of 2", ids, _with(ones, 2)
    yield "a mask of 0.3", ids, _with(ones.astype(np.float64), 0.3)
    yield "a mask that is too short", ids, ones[:, :-1]
    yield "a mask that is too long", ids, np.pad(ones, ((0, 0), (0, 1)), constant_values=1)


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
