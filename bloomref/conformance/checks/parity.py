"""Properties against the truth: the case's result, and what leads to it, within the error that rounding explains."""

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


def adapted(subject: Subject, case: Case) -> Iterable[Judgement]:
    """All that the implementation shows of a model with an adapter; over a cache without padding, which `pieces` asks about."""
    yield from logits(subject, case)
    if hasattr(subject.model(case), "trace"):
        yield from intermediates(subject, case)
    if hasattr(subject.model(case), "in_pieces") and case.is_real.all():
        yield from pieces(subject, case)
