"""Properties without an oracle: inputs that mean the same give the same, up to the rounding of both runs."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.rerun import in_pieces, run, same, verdict
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array


def cache(subject: Subject, case: Case) -> Iterable[Judgement]:
    once = in_pieces(subject, case, (), spare=0)
    yield same(subject, case, once, in_pieces(subject, case, case.cuts, spare=0), "pieces over the same cache")
    yield same(subject, case, once, in_pieces(subject, case, (), spare=64), "a cache that is longer by 64 positions")


def causality(subject: Subject, case: Case) -> Iterable[Judgement]:
    """The tokens before t, on their own and with other tokens behind them."""
    t = 1 + case.seed % (case.time - 1)
    before = np.broadcast_to(np.arange(case.time) < t, case.is_real.shape)
    whole = run(subject, case)
    alone = np.zeros_like(whole)
    alone[:, :t] = run(subject, case, case.token_ids[:, :t], case.is_real[:, :t])
    yield same(subject, case, whole, alone, f"the first {t} positions alone", before)
    other = np.where(before, case.token_ids, (case.token_ids + 1) % case.config.vocabulary_size)
    yield same(subject, case, whole, run(subject, case, other), f"other tokens from position {t} on", before)


def padding(subject: Subject, case: Case) -> Iterable[Judgement]:
    other = np.where(case.is_real, case.token_ids, (case.token_ids + 1) % case.config.vocabulary_size)
    yield same(subject, case, run(subject, case), run(subject, case, other), "other ids at padded positions")


def rows(subject: Subject, case: Case) -> Iterable[Judgement]:
    together = run(subject, case)
    swapped = run(subject, case, case.token_ids[::-1], case.is_real[::-1])[::-1]
    yield same(subject, case, together, swapped, "the rows in reverse")
    alone = [run(subject, case, case.token_ids[i : i + 1], case.is_real[i : i + 1]) for i in range(case.batch)]
    yield same(subject, case, together, np.concatenate(alone), "each row alone")


def shift(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Padding at the ends removed, row by row: the text moves to other columns, its distances stay."""
    padded = run(subject, case)
    bare = padded.copy()
    for i in range(case.batch):
        columns = np.flatnonzero(case.is_real[i])
        text = case.token_ids[i : i + 1, columns]
        bare[i, columns] = run(subject, case, text, np.ones(text.shape, bool))[0]
    yield same(subject, case, padded, bare, "each row without its padding")


def hole(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Only where the mistake would be plain: the truth of the shortened text is far from that of the text with a hole."""
    found, exact = run(subject, case), truth(case).values["logits"]
    deleted = exact.copy()
    for i in range(case.batch):
        columns = np.flatnonzero(case.is_real[i])
        text = case.token_ids[i : i + 1, columns]
        deleted[i, columns] = InstrumentedModel.of(case).run(text, np.ones(text.shape, bool))["logits"][0]
    [apart] = judge(case, subject.tier, {"logits": deleted})
    [near] = judge(case, subject.tier, {"logits": exact + (found - deleted)})
    if apart.verdict == "fail" and near.verdict == "pass":
        told = "the result is that of the text without the padded tokens: a hole must keep its column"
        yield replace(apart, verdict="fail", explanation=told)
    elif apart.verdict == "fail":
        yield verdict(True, "")
    else:
        yield replace(
            apart, verdict="inconclusive", explanation="a hole and no token are the same here, within rounding"
        )


def repeat(subject: Subject, case: Case) -> Iterable[Judgement]:
    ids, real = case.token_ids.copy(), case.is_real.copy()
    one, two = run(subject, case, ids, real), run(subject, case, ids, real)
    yield verdict(_bits(one, case) == _bits(two, case), "a second call gives other bits")
    unchanged = np.array_equal(ids, case.token_ids) and np.array_equal(real, case.is_real)
    yield verdict(unchanged, "the call has changed its arguments")


def adapted(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Not to the bit, even where B is zero: the bits of a library may depend on where in memory a model lies."""
    assert case.lora is not None
    bare, zero = replace(case, lora=None), replace(case, lora=replace(case.lora, gain=0.0))
    yield same(subject, bare, run(subject, bare), run(subject, zero), "an adapter whose B is zero")
    twice = run(subject, replace(case, lora=replace(case.lora, copies=2)))
    yield same(
        subject, case, run(subject, case), twice, "the same product of matrices at twice the rank, in two halves"
    )


def _bits(found: Array, case: Case) -> bytes:
    return found[case.is_real].tobytes()
