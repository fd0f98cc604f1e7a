"""Known mistakes that explain a wrong run, in words; the search has a limit of time."""

import time
from collections.abc import Iterator, Sequence

from bloomref.conformance.diff import origins
from bloomref.conformance.diff.explain import Explanation, can_explain, explain
from bloomref.conformance.diff.judged_run import JudgedRun
from bloomref.conformance.diff.operands import Operand
from bloomref.conformance.diff.wording import listed
from bloomref.conformance.mistakes import MISTAKES, Mistake
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Subject

SECONDS = 10.0
"""Time limit of the search for a known mistake; large cases take seconds for each."""


def explained(subject: Subject, run: JudgedRun, first: Judgement) -> Iterator[str]:
    """Yield the known mistakes that match, or the one that comes close."""
    operand = Operand(subject.implementation.name, run.values, run.tier, run.capacity, run.cuts)
    since = time.monotonic()
    explanations = _explanations(run, operand, first)
    matches = [explanation for explanation in explanations if explanation.matches]
    if matches:
        yield from named([explanation.mistake for explanation in matches])
    elif explanations:
        close = explanations[0]
        yield f"it is close to {_described(close.mistake)} ({close.share:.0%} of the error)"
    else:
        is_late = time.monotonic() - since > SECONDS
        yield "no known mistake explains it" + f", of those tried in {SECONDS:g} s; diff tries all" * is_late


def named(matches: Sequence[Mistake]) -> Iterator[str]:
    """Yield the known mistakes that match."""
    if matches:
        yield f"it matches {_described(matches[0])}"
    if matches[1:]:
        yield f"the same effect on this input: {listed([mistake.name for mistake in matches[1:]])}"


def _described(mistake: Mistake) -> str:
    return f"{mistake.name} ({', '.join(mistake.clauses)}): it {mistake.sentence}"


def _explanations(run: JudgedRun, operand: Operand, first: Judgement) -> list[Explanation]:
    """Try the mistakes that begin at the first wrong intermediate, then the others, while there is time."""
    able = [mistake for mistake in MISTAKES if can_explain(run.case, mistake, first.name)]
    bare = origins.split(first.name)[1]
    likely = [mistake for mistake in able if origins.split(mistake.first)[1] == bare]
    likely.sort(key=lambda mistake: ("pieces" in mistake.needs) != (run.capacity > 0))
    end = time.monotonic() + SECONDS
    for group in (likely, [mistake for mistake in able if mistake not in likely]):
        explanations = explain(run.case, operand, group, end)
        if any(explanation.matches for explanation in explanations):
            return explanations
    return explanations
