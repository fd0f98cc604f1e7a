"""One run of a case, judged: the intermediates that an implementation shows, in one call or over a cache."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.diff.operands import results, traced
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array

OF_A_CACHE = ("pieces", "cache", "trace-pieces", "step", "tokens", "lora", "lora-heads")
"""Properties whose failures may need calls over a cache."""


@dataclass(frozen=True, eq=False)
class JudgedRun:
    """The intermediates that an implementation shows of one case, judged.

    Args:
        cuts, capacity: of the calls over a cache; capacity 0: one call.
        values: the intermediates by name.
        judgements: one for each, in the order of computation.
        is_traced: True if they are more than results.
    """

    case: Case
    tier: Tier
    cuts: tuple[int, ...]
    capacity: int
    values: dict[str, Array] = field(repr=False)
    judgements: list[Judgement] = field(repr=False)
    is_traced: bool = False

    @property
    def wrong(self) -> list[Judgement]:
        return [judgement for judgement in self.judgements if judgement.verdict == "fail"]

    @property
    def first(self) -> Judgement | None:
        """The first wrong intermediate."""
        return next(iter(self.wrong), None)

    @property
    def no_error(self) -> str:
        """Sentence for a run without a wrong intermediate."""
        what = f"all {len(self.judgements)} intermediates are" if self.is_traced else "the result is"
        return f"in one call of the whole input, {what} right"


def judged_run(subject: Subject, case: Case, cuts: tuple[int, ...] = (), capacity: int = 0) -> JudgedRun:
    """Run the implementation on a case and judge its trace; if that is right or missing, its results.

    The cuts of the case are not used, so that all runs share its truth and its budget.

    Args:
        capacity: of the cache for calls that begin at `cuts`; 0: one call without a cache.

    Raises:
        Raised: the implementation raised; Unsupported: it cannot run the case.
    """
    over_cache = (cuts, capacity) if capacity else ()
    values = traced(subject, case, over_cache)
    judgements = judge(case, subject.tier, values)
    is_traced = len(values) > 1
    if not any(judgement.verdict == "fail" for judgement in judgements):
        values |= results(subject, case, over_cache)
        judgements = judge(case, subject.tier, values)
    return JudgedRun(case, subject.tier, cuts, capacity, values, judgements, is_traced)


def runs_over_cache(subject: Subject, failure: Failure) -> Iterator[JudgedRun]:
    """Yield runs over a cache: as the case divides the input, in one call, and position by position."""
    case = failure.case
    if failure.name not in OF_A_CACHE and not case.cuts:
        return
    if not any(subject.offers(case, method) for method in ("in_pieces", "trace_in_pieces")):
        return
    spare, steps = case.time + 1 + case.seed % 3, tuple(range(max(1, case.time // 2), case.time))
    for cuts, capacity in ((case.cuts, case.time), (case.cuts, spare), ((), case.time + 64), (steps, spare)):
        yield judged_run(subject, case, cuts, capacity)
