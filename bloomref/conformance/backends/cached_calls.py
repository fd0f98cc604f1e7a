"""Caches: nothing but the positions before a call decides what it returns."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from bloomref.conformance.backends.tested import Guarded, Tested, condition
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array

HIDDEN = "final_norm"


def edges(case: Case) -> list[tuple[int, int]]:
    """First and last position of the calls of a run: those of the case, or two."""
    cuts = case.cuts or ((case.time // 2,) if case.time > 1 else ())
    return list(pairwise((0, *cuts, case.time)))


def state(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Run a case over a cache, and again with other calls before, between and twice; its results are the oracle's."""
    tested, other_ids = Tested.of(subject, case), (case.token_ids + 1) % case.config.vocabulary_size
    capacity = case.time + case.seed % 3
    plain, disturbed, third = (tested.new_cache(case.batch, capacity) for _ in range(3))
    other = tested.prepare(case.params.map(lambda array: array * 1.25).astype(tested.policy.variable_dtype))
    ones = np.ones_like(case.is_real)
    expected, results, twice = [], [], []

    def call(model: Tested, cache: Guarded, ids: Array, real: Array, start: int, stop: int) -> Array:
        return np.asarray(model.prepared.to_host(model.extend(cache, start, ids[:, start:stop], real[:, :stop])))

    for a, b in edges(case):
        expected.append(call(tested, plain, case.token_ids, case.is_real, a, b))
    for a, b in edges(case):
        call(tested, disturbed, other_ids, ones, a, min(b + 2, case.time))  # overwritten: the next call rewinds
        call(tested, third, other_ids, ones, a, b)
        other.whole(case.token_ids, case.is_real)
        results.append(call(tested, disturbed, case.token_ids, case.is_real, a, b))
        twice.append(call(tested, disturbed, case.token_ids, case.is_real, a, b))
    joined = np.concatenate(results, axis=1)
    yield from judge(case, subject.tier, {HIDDEN: joined})
    if tested.declared.repeatable:
        yield _same_bits(
            case, np.concatenate(expected, axis=1), joined, "after calls that were overwritten, and others"
        )
        yield _same_bits(case, joined, np.concatenate(twice, axis=1), "a repeated call")


def _same_bits(case: Case, one: Array, two: Array, what: str) -> Judgement:
    return condition("hidden", one[case.is_real].tobytes() == two[case.is_real].tobytes(), f"{what}: other bits")


def select(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Read the first positions with the rows in reverse order, and the rest over a copy with the rows of the case.

    The copy has the first row of the case twice more. It is overwritten afterwards: the cache must not see that.
    """
    tested, cut = Tested.of(subject, case), max(1, case.time // 2)
    ids, real, rows = case.token_ids[::-1], case.is_real[::-1], np.arange(case.batch)[::-1]
    cache = tested.new_cache(case.batch, case.time)
    first = np.asarray(tested.prepared.to_host(tested.extend(cache, 0, ids[:, :cut], real[:, :cut])))
    order = np.concatenate([rows, rows[:1], rows[:1]])
    copy = tested.select(cache, order)
    copied = np.asarray(tested.prepared.to_host(tested.extend(copy, cut, ids[order, cut:], real[order])))
    yield condition("hidden", len(copied) == len(order), f"expected {len(order)} rows, got {len(copied)}")
    yield from _continued(subject, case, cut, copied[: case.batch], "rows of a copy in another order")
    yield from _continued(subject, case, cut, _with_first(copied, case.batch), "a row that a copy has twice")
    tested.extend(copy, 0, (ids[order] + 1) % case.config.vocabulary_size, np.ones_like(real[order]))
    rest = np.asarray(tested.prepared.to_host(tested.extend(cache, cut, ids[:, cut:], real)))
    together = np.concatenate([first, rest], axis=1)[::-1]
    yield from _continued(subject, case, 0, together, "a cache whose copy was overwritten")


def _with_first(copied: Array, batch: int) -> Array:
    """The rows of the case, the first one from the last row of the copy."""
    return np.concatenate([copied[-1:], copied[1:batch]])


def _continued(subject: Subject, case: Case, cut: int, hidden: Array, what: str) -> Iterable[Judgement]:
    """Judge the hidden states from position `cut` on."""
    filled = truth(case).values[HIDDEN].copy()
    filled[:, cut:] = hidden
    for judgement in judge(case, subject.tier, {HIDDEN: filled}):
        yield Judgement(
            judgement.name, judgement.verdict, judgement.z, judgement.where, f"{what}: {judgement.explanation}"
        )
