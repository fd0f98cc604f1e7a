"""How many of the known mistakes the kit finds: each is planted in the bench and goes the way of every implementation.

All mistakes are asked the same cases, in the kit's own order and number, so that what is known of a case is computed once.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.mistakes import Mistake
from bloomref.conformance.oracle.budgets import sigma
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES, Property
from bloomref.conformance.run import runner
from bloomref.conformance.run.results import Counts
from bloomref.conformance.subject import Subject


@dataclass(eq=False)
class Kill:
    """What became of one mistake.

    Args:
        found_by: the property that failed first, or "" while none has.
        clauses: of that property.
        z: how far it left the budget.
        questions: how many were asked.
        seconds: that they took, with the truth and the budget of each case, as if it had been asked alone.
    """

    mistake: Mistake
    dtype: str
    found_by: str = ""
    clauses: tuple[str, ...] = ()
    case: str = ""
    z: float = 0.0
    because: str = ""
    questions: int = 0
    seconds: float = 0.0
    prepared: set[Case] = field(default_factory=set)


def plant(
    mistakes: Sequence[Mistake], dtype: str, examples: int = runner.EXAMPLES, pinned: Sequence[Case] = FIXED_CASES
) -> list[Kill]:
    """Ask every property about every mistake, until one fails."""
    kills = [Kill(mistake, dtype) for mistake in mistakes]
    subjects = [Subject(InstrumentedImplementation(mistake.model), dtype) for mistake in mistakes]
    preparing: dict[Case, float] = {}
    for found in PROPERTIES.values():
        for case in questions(found, dtype, examples, pinned):
            alive = [pair for pair in zip(kills, subjects, strict=True) if _may_show(pair[0], found)]
            if alive:
                spent = _prepare(case, alive[0][1])
                preparing.setdefault(case, spent)
            for kill, subject in alive:
                kill.seconds += preparing[case] * (case not in kill.prepared)
                kill.prepared.add(case)
                _ask(found, case, kill, subject)
    return kills


def _may_show(kill: Kill, found: Property) -> bool:
    """It is still alive, and the property could tell: a mistake with adapters is none in a model without."""
    return not kill.found_by and (bool(found.adapter) or not kill.mistake.is_of_adapters)


def questions(found: Property, dtype: str, examples: int, pinned: Sequence[Case]) -> Iterable[Case]:
    """The cases that a run of the kit asks of this property: those that are pinned, then those that it draws."""
    subject = Subject(InstrumentedImplementation(), dtype)
    if runner.lacking(found, subject) is None:
        yield from (case for case in pinned if runner.applies(found, case) and subject.missing(case) is None)
        yield from Recorder(examples).cases(found, subject)


class Recorder(runner.Runner):
    """A runner that asks nothing and remembers what it would have asked."""

    def __init__(self, examples: int) -> None:
        super().__init__(examples)
        self.asked: list[Case] = []

    def ask(self, found: Property, subject: Subject, case: Case, counts: object) -> None:  # noqa: ARG002
        self.asked.append(case)

    def cases(self, found: Property, subject: Subject) -> list[Case]:
        self.draw(found, subject, Counts(found.name, subject.dtype))
        return self.asked


def _prepare(case: Case, subject: Subject) -> float:
    """Seconds for what is computed once for each case; 0 where it is known."""
    begin = time.perf_counter()
    truth(case)
    sigma(case, subject.tier)
    return time.perf_counter() - begin


def _ask(found: Property, case: Case, kill: Kill, subject: Subject) -> None:
    begin = time.perf_counter()
    kill.questions += 1
    try:
        with np.errstate(all="ignore"):
            found.check(subject, case)
    except Inconclusive:
        pass
    except Failure as failure:
        kill.found_by, kill.clauses, kill.case = found.name, failure.clauses, case.name or "drawn"
        kill.z, kill.because = failure.judgement.z, failure.judgement.explanation
    kill.seconds += time.perf_counter() - begin
