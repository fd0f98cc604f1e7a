"""One test for each property and dtype on drawn cases, for each fixed case and dtype over all properties, and for each
topic of the vectors and dtype."""

import traceback
from collections.abc import Callable
from functools import partial

import pytest

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.properties import Property
from bloomref.conformance.run.results import Counts
from bloomref.conformance.run.runner import applies, lacking
from bloomref.conformance.subject import Subject
from bloomref.conformance.suite.pytest_session import Kit, attach
from bloomref.conformance.vectors.ask import NAME, ask_all

pytestmark = pytest.mark.filterwarnings("default")  # warnings of an implementation do not fail it


def answer(item: pytest.Item, counts: Counts, question: Callable[[], None]) -> None:
    """Ask, attach the counts, and fail with the text of a Failure. If an exception caused it, show its last calls."""
    failure = None
    try:
        question()
    except Failure as error:
        failure = error
    attach(item, counts)
    if failure is not None:
        behind = traceback.format_exception(failure.__cause__, limit=-6) if failure.__cause__ else []
        pytest.fail("\n".join([str(failure), *behind]).rstrip(), pytrace=False)


def test_drawn(kit: Kit, subject: Subject, prop: Property, request: pytest.FixtureRequest) -> None:
    counts, reason = Counts(prop.name, subject.dtype), lacking(prop, subject)
    if reason is None:
        answer(request.node, counts, lambda: kit.runner.draw(prop, subject, counts))
    else:
        counts.add_reason(reason)
        attach(request.node, counts)
    if counts.verdict in ("not asked", "inconclusive"):
        pytest.skip(f"{counts.verdict}: {counts.reasons[0]}")


def test_vectors(kit: Kit, subject: Subject, topic: str, request: pytest.FixtureRequest) -> None:
    counts = Counts(NAME, subject.dtype)
    answer(request.node, counts, lambda: ask_all(subject, topic, kit.runner.waivers, counts))
    if counts.verdict == "not asked":
        pytest.skip(f"not asked: {counts.reasons[0]}")


def test_fixed_case(kit: Kit, subject: Subject, case: Case, request: pytest.FixtureRequest) -> None:
    reason = subject.missing(case)
    if reason is not None:
        pytest.skip(reason)
    for prop in kit.properties.values():
        if prop.fixed and applies(prop, case) and lacking(prop, subject) is None:
            counts = Counts(prop.name, subject.dtype)
            answer(request.node, counts, partial(kit.runner.ask, prop, subject, case, counts))
