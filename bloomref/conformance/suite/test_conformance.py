"""One test for each property and dtype, over drawn cases; for each pinned case and dtype, over all properties; and for each topic of
the vectors and dtype."""

import traceback
from collections.abc import Callable
from functools import partial

import pytest

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.properties import PROPERTIES, Property
from bloomref.conformance.run.pytest_session import Kit, note
from bloomref.conformance.run.results import Tally
from bloomref.conformance.run.runner import applies, lacking
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import NAME, ask_all

pytestmark = pytest.mark.filterwarnings("default")  # what an implementation warns of is its own affair


def answer(item: pytest.Item, tally: Tally, question: Callable[[], None]) -> None:
    """Ask, and report. A failure is shown by its own words, and an exception behind it by its last calls."""
    failure = None
    try:
        question()
    except Failure as error:
        failure = error
    note(item, tally)
    if failure is not None:
        behind = traceback.format_exception(failure.__cause__, limit=-6) if failure.__cause__ else []
        pytest.fail("\n".join([str(failure), *behind]).rstrip(), pytrace=False)


def test_drawn(kit: Kit, subject: Subject, found: Property, request: pytest.FixtureRequest) -> None:
    tally, reason = Tally(found.name, subject.dtype), lacking(found, subject)
    if reason is None:
        answer(request.node, tally, lambda: kit.runner.draw(found, subject, tally))
    else:
        tally.remember(reason)
        note(request.node, tally)
    if tally.verdict in ("not asked", "inconclusive"):
        pytest.skip(f"{tally.verdict}: {tally.reasons[0]}")


def test_vectors(kit: Kit, subject: Subject, topic: str, request: pytest.FixtureRequest) -> None:
    tally = Tally(NAME, subject.dtype)
    answer(request.node, tally, lambda: ask_all(subject, topic, kit.runner.waivers, tally))
    if tally.verdict == "not asked":
        pytest.skip(f"not asked: {tally.reasons[0]}")


def test_pinned(kit: Kit, subject: Subject, case: Case, request: pytest.FixtureRequest) -> None:
    reason = subject.missing(case)
    if reason is not None:
        pytest.skip(reason)
    for found in PROPERTIES.values():
        if applies(found, case) and lacking(found, subject) is None:
            tally = Tally(found.name, subject.dtype)
            answer(request.node, tally, partial(kit.runner.ask, found, subject, case, tally))
