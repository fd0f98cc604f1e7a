"""The questions of a run, in their order, and their answers. pytest and `bloomref conform` ask the same."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.properties import Property
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.failures import Occurrence, occurrence
from bloomref.conformance.run.runner import Runner, applies, lacking
from bloomref.conformance.run.selection import Selection
from bloomref.conformance.subject import NotAsked, Subject
from bloomref.conformance.vectors.ask import NAME as VECTORS
from bloomref.conformance.vectors.ask import failures_of
from bloomref.conformance.vectors.topics import TOPICS

KINDS = ("drawn", "vectors", "fixed")


@dataclass(frozen=True)
class Question:
    """A property on drawn cases, a topic of the vectors, or a fixed case under all properties.

    Args:
        kind: one of `KINDS`.
        name: name of the property, topic or case.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return {"drawn": self.name, "vectors": f"vectors/{self.name}", "fixed": f"case {self.name!r}"}[self.kind]


@dataclass
class Answer:
    """Counts and failures of a question, and seconds by property."""

    counts: list[Counts] = field(default_factory=list)
    failures: list[Occurrence] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of the whole question."""
        return sum(self.seconds.values())


def questions(properties: Collection[str], selection: Selection) -> list[Question]:
    """All questions of a run in one dtype; `properties` are those of the implementation."""
    drawn = [Question("drawn", name) for name in properties if selection.includes_drawn(name)]
    vectors = [Question("vectors", topic) for topic in sorted(TOPICS) if selection.includes_topic(topic)]
    is_fixed = any(selection.includes(name) for name in properties)
    fixed = [Question("fixed", case.name) for case in FIXED_CASES if is_fixed and selection.includes_case(case.name)]
    return drawn + vectors + fixed


def ask(
    runner: Runner, subject: Subject, question: Question, properties: Mapping[str, Property], selection: Selection
) -> Answer:
    """Ask one question."""
    answer = Answer()
    if question.kind == "drawn":
        _ask_drawn(runner, subject, properties[question.name], answer)
    elif question.kind == "vectors":
        _ask_vectors(runner, subject, question.name, answer)
    else:
        case = next(case for case in FIXED_CASES if case.name == question.name)
        for prop in properties.values():
            if prop.fixed and applies(prop, case) and selection.includes(prop.name):
                _ask_fixed(runner, subject, prop, case, answer)
    return answer


def _ask_drawn(runner: Runner, subject: Subject, prop: Property, answer: Answer) -> None:
    with _counted(answer, prop.name, subject) as counts:
        reason = lacking(prop, subject)
        if reason is not None:
            counts.record_not_asked(reason, count=runner.number(prop))
            return
        try:
            runner.draw(prop, subject, counts)
        except Failure as failure:
            answer.failures.append(occurrence(failure, prop.name, "drawn"))


def _ask_fixed(runner: Runner, subject: Subject, prop: Property, case: Case, answer: Answer) -> None:
    with _counted(answer, prop.name, subject) as counts:
        reason = lacking(prop, subject)
        missing = subject.missing(case)
        if missing is not None:
            reason = NotAsked(missing, bounds=not subject.is_inexact(case))
        if reason is not None:
            counts.record_not_asked(reason)
            return
        try:
            runner.ask(prop, subject, case, counts)
        except Failure as failure:
            answer.failures.append(occurrence(failure, prop.name, case.name))


def _ask_vectors(runner: Runner, subject: Subject, topic: str, answer: Answer) -> None:
    with _counted(answer, VECTORS, subject) as counts:
        for failure in failures_of(subject, topic, runner.waivers, counts):
            answer.failures.append(occurrence(failure, VECTORS, failure.name))


@contextmanager
def _counted(answer: Answer, name: str, subject: Subject) -> Iterator[Counts]:
    """Yield new counts of the answer, and add the time that passes inside."""
    counts, since = Counts(name, subject.dtype), time.monotonic()
    answer.counts.append(counts)
    try:
        yield counts
    finally:
        answer.seconds[name] = answer.seconds.get(name, 0.0) + time.monotonic() - since
