"""Invariants: inputs that mean the same give the same logits, within the rounding budget of two runs."""

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
    """Divide a run into calls, and enlarge the cache."""
    once = in_pieces(subject, case, (), spare=0)
    yield same(
        subject,
        case,
        once,
        in_pieces(subject, case, case.cuts, spare=0),
        "several calls over a cache of the same capacity",
    )
    yield same(subject, case, once, in_pieces(subject, case, (), spare=64), "a capacity larger by 64 positions")


def causality(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Run the tokens before position t alone, and followed by other tokens."""
    t = 1 + case.seed % (case.time - 1)
    before = np.broadcast_to(np.arange(case.time) < t, case.is_real.shape)
    whole = run(subject, case)
    alone = np.zeros_like(whole)
    alone[:, :t] = run(subject, case, case.token_ids[:, :t], case.is_real[:, :t])
    yield same(subject, case, whole, alone, f"only the first {t} positions", before)
    other = np.where(before, case.token_ids, (case.token_ids + 1) % case.config.vocabulary_size)
    yield same(subject, case, whole, run(subject, case, other), f"other tokens from position {t} on", before)


def padding(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Change the token ids at padded positions."""
    other = np.where(case.is_real, case.token_ids, (case.token_ids + 1) % case.config.vocabulary_size)
    yield same(subject, case, run(subject, case), run(subject, case, other), "other ids at padded positions")


def rows(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Reverse the rows of the batch, and run each row alone."""
    together = run(subject, case)
    swapped = run(subject, case, case.token_ids[::-1], case.is_real[::-1])[::-1]
    yield same(subject, case, together, swapped, "the rows in reverse order")
    alone = [run(subject, case, case.token_ids[i : i + 1], case.is_real[i : i + 1]) for i in range(case.batch)]
    yield same(subject, case, together, np.concatenate(alone), "each row alone")


def shift(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Remove the padding at the ends of each row: positions change, distances do not."""
    padded = run(subject, case)
    bare = padded.copy()
    for i in range(case.batch):
        positions = np.flatnonzero(case.is_real[i])
        text = case.token_ids[i : i + 1, positions]
        bare[i, positions] = run(subject, case, text, np.ones(text.shape, bool))[0]
    yield same(subject, case, padded, bare, "each row without its padding")


def hole(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Detect that padded tokens were deleted; inconclusive if that would hardly change the logits."""
    output, exact = run(subject, case), truth(case).values["logits"]
    deleted = exact.copy()
    for i in range(case.batch):
        positions = np.flatnonzero(case.is_real[i])
        text = case.token_ids[i : i + 1, positions]
        deleted[i, positions] = InstrumentedModel.of(case).run(text, np.ones(text.shape, bool))["logits"][0]
    [apart] = judge(case, subject.tier, {"logits": deleted})
    [near] = judge(case, subject.tier, {"logits": exact + (output - deleted)})
    if apart.verdict == "fail" and near.verdict == "pass":
        reason = "the logits are those of the text without its padding: padding inside a text must keep its position"
        yield replace(apart, verdict="fail", explanation=reason)
    elif apart.verdict == "fail":
        yield verdict(True, "")
    else:
        yield replace(
            apart, verdict="inconclusive", explanation="deleting the padding changes the logits by less than rounding"
        )


def repeat(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Call twice with the same arrays."""
    ids, real = case.token_ids.copy(), case.is_real.copy()
    one, two = run(subject, case, ids, real), run(subject, case, ids, real)
    yield verdict(_bits(one, case) == _bits(two, case), "a second call returns other bits")
    unchanged = np.array_equal(ids, case.token_ids) and np.array_equal(real, case.is_real)
    yield verdict(unchanged, "the call changed its arguments")


def adapted(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Compare with B = 0 and with twice the rank. Bits may differ even for B = 0: those of a library may depend on
    memory alignment."""
    assert case.lora is not None
    bare, zero = replace(case, lora=None), replace(case, lora=replace(case.lora, gain=0.0))
    yield same(subject, bare, run(subject, bare), run(subject, zero), "an adapter whose B is zero")
    twice = run(subject, replace(case, lora=replace(case.lora, copies=2)))
    yield same(
        subject, case, run(subject, case), twice, "the same product of matrices at twice the rank, in two halves"
    )


def _bits(logits: Array, case: Case) -> bytes:
    return logits[case.is_real].tobytes()
