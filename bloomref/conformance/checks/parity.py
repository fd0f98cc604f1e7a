"""Parity with the oracle: the logits of a case and its intermediates, within the rounding budget."""

from collections.abc import Iterable

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.rerun import in_pieces, run
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.subject import Subject


def logits(subject: Subject, case: Case) -> Iterable[Judgement]:
    return judge(case, subject.tier, {"logits": run(subject, case)})


def hidden(subject: Subject, case: Case) -> Iterable[Judgement]:
    return judge(case, subject.tier, {"final_norm": subject.ask(case, "hidden", case.token_ids, case.is_real)})


def intermediates(subject: Subject, case: Case) -> Iterable[Judgement]:
    return judge(case, subject.tier, subject.ask(case, "trace", case.token_ids, case.is_real))


def pieces(subject: Subject, case: Case) -> Iterable[Judgement]:
    return judge(case, subject.tier, {"logits": in_pieces(subject, case, case.cuts, spare=case.seed % 3)})


def trace_in_pieces(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge every intermediate of calls over a cache that is larger than the input."""
    capacity = case.time + 1 + case.seed % 3
    outputs = subject.ask(case, "trace_in_pieces", case.token_ids, case.is_real, case.cuts, capacity)
    return judge(case, subject.tier, outputs)


def adapted(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge logits, and intermediates and calls over a cache if offered. The cache is asked without padding only:
    `pieces` has it."""
    yield from logits(subject, case)
    if subject.offers(case, "trace"):
        yield from intermediates(subject, case)
    if subject.offers(case, "in_pieces") and case.is_real.all():
        yield from pieces(subject, case)
