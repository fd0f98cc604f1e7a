"""Mutation testing of the kit: which property detects each known mistake.

Each mistake runs as a separate implementation. All of them get the same cases, in the order and number of the kit, so
that the truth and the budget of a case are computed once.
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
class Detection:
    """Detection of one mutant by the kit, if any.

    Args:
        mistake: the mistake that the mutant makes.
        dtype: dtype in which the mutant computes.
        found_by: name of the first property that failed; "" if none did.
        clauses: clauses of that property.
        case: name of the case in which it failed.
        z: Z of the failure.
        because: explanation of the failure.
        questions: number of checks until then.
        seconds: their duration, including the truth and the budget of each case.
        prepared: cases whose preparation `seconds` includes.
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


def detect(
    mistakes: Sequence[Mistake], dtype: str, examples: int = runner.EXAMPLES, pinned: Sequence[Case] = FIXED_CASES
) -> list[Detection]:
    """Check every property on every mutant, until one fails. Returns one detection per mistake.

    Args:
        mistakes: mistakes of the mutants.
        dtype: dtype in which the mutants compute.
        examples: number of random cases for each property.
        pinned: the fixed cases.
    """
    detections = [Detection(mistake, dtype) for mistake in mistakes]
    subjects = [Subject(InstrumentedImplementation(mistake.model), dtype) for mistake in mistakes]
    preparation: dict[Case, float] = {}
    for tested in PROPERTIES.values():
        for case in questions(tested, dtype, examples, pinned):
            pending = [pair for pair in zip(detections, subjects, strict=True) if _is_pending(pair[0], tested)]
            if pending:
                seconds = _prepare(case, pending[0][1])
                preparation.setdefault(case, seconds)
            for detection, subject in pending:
                detection.seconds += preparation[case] * (case not in detection.prepared)
                detection.prepared.add(case)
                _check(tested, case, detection, subject)
    return detections


def _is_pending(detection: Detection, tested: Property) -> bool:
    """True if the mutant is undetected and the property may detect it. Only an adapter shows a mistake of adapters, and
    only gradients show one of the backward pass."""
    mistake = detection.mistake
    shows = (bool(tested.adapter) or not mistake.is_of_adapters) and (
        "loss_and_gradients" in tested.needs or not mistake.is_of_gradients
    )
    return not detection.found_by and shows


def questions(tested: Property, dtype: str, examples: int, pinned: Sequence[Case]) -> Iterable[Case]:
    """Return the cases on which a run of the kit checks a property: the fixed ones, then the random ones."""
    subject = Subject(InstrumentedImplementation(), dtype)
    if runner.lacking(tested, subject) is None:
        yield from (case for case in pinned if runner.applies(tested, case) and subject.missing(case) is None)
        yield from Recorder(examples).cases(tested, subject)


class Recorder(runner.Runner):
    """Runner that records the cases instead of checking them."""

    def __init__(self, examples: int) -> None:
        super().__init__(examples)
        self.asked: list[Case] = []

    def ask(self, prop: Property, subject: Subject, case: Case, counts: object) -> None:  # noqa: ARG002
        """Record a case."""
        self.asked.append(case)

    def cases(self, tested: Property, subject: Subject) -> list[Case]:
        """Return the random cases of a property."""
        self.draw(tested, subject, Counts(tested.name, subject.dtype))
        return self.asked


def _prepare(case: Case, subject: Subject) -> float:
    """Compute the truth and the budget of a case, and return the seconds; 0 if both are cached."""
    begin = time.perf_counter()
    truth(case)
    sigma(case, subject.tier)
    return time.perf_counter() - begin


def _check(tested: Property, case: Case, detection: Detection, subject: Subject) -> None:
    begin = time.perf_counter()
    detection.questions += 1
    try:
        with np.errstate(all="ignore"):
            tested.check(subject, case)
    except Inconclusive:
        pass
    except Failure as failure:
        detection.found_by, detection.clauses, detection.case = tested.name, failure.clauses, case.name or "drawn"
        detection.z, detection.because = failure.judgement.z, failure.judgement.explanation
    detection.seconds += time.perf_counter() - begin
