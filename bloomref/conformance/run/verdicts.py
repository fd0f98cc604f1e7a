"""The verdict on an implementation in one dtype, and what bounds it (CNF-10, CNF-11)."""

from collections import Counter
from collections.abc import Iterable

from bloomref.conformance.run.counts import WORDS, Counts
from bloomref.conformance.run.texts import listed

CONFORMS = "conforms"
IN_WHAT_IT_ANSWERS = "conforms in what it answers"
IN_WHAT_IT_DECLARES = "conforms in what it declares"
IN_WHAT_WAS_ASKED = "conforms in what was asked"
WAIVED = ", but for the waivers"
FAILS = "does not conform"
NOT_CHECKED = "not checked"


def verdict(counts: Iterable[Counts], problem: str | None, whole: bool) -> str:
    """Return the verdict.

    Args:
        counts: those of one dtype.
        problem: why not even the plainest model could be loaded.
        whole: every property, fixed case and vector was asked for; the run was not restricted to some.
    """
    rows = list(counts)
    if problem or any(row.failed for row in rows):
        return FAILS
    if not any(row.passed for row in rows):
        return NOT_CHECKED
    if not whole:
        claim = IN_WHAT_WAS_ASKED
    elif any(row.refused for row in rows):
        claim = IN_WHAT_IT_ANSWERS
    else:
        claim = IN_WHAT_IT_DECLARES if _unasked(rows) else CONFORMS
    return claim + WAIVED * any(row.waived for row in rows)


def is_unqualified(text: str) -> bool:
    """True for the verdict on an implementation that answered everything that it can be asked."""
    return text in (CONFORMS, CONFORMS + WAIVED)


def bounds(counts: Iterable[Counts]) -> list[str]:
    """Return one line for the refusals and one for what was not asked: how many questions, and why."""
    rows = list(counts)
    total = sum(row.questions for row in rows)
    numbers = {"refused": sum(row.refused for row in rows), "not_asked": _unasked(rows)}
    reasons = {
        outcome: sum((Counter(row.reasons.get(outcome, {})) for row in rows), Counter[str]()) for outcome in numbers
    }
    return [
        f"{WORDS[outcome]}: {count:,} of {total:,} questions: {listed(reasons[outcome])}"
        for outcome, count in numbers.items()
        if count
    ]


def _unasked(rows: list[Counts]) -> int:
    return sum(row.not_asked - row.not_applicable for row in rows)
