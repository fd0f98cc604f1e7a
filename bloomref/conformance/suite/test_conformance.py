"""One test for each property and dtype on drawn cases, for each fixed case and dtype over all properties, and for each
topic of the vectors and dtype."""

import pytest

from bloomref.conformance.run.failures import Group
from bloomref.conformance.run.texts import listed
from bloomref.conformance.subject import Subject
from bloomref.conformance.suite.asking import Question
from bloomref.conformance.suite.kit import Kit
from bloomref.conformance.suite.pytest_session import attach

pytestmark = pytest.mark.filterwarnings("default")  # warnings of an implementation do not fail it


def check(kit: Kit, subject: Subject, question: Question, item: pytest.Item) -> None:
    """Ask, attach the counts, and fail with the texts of all failures; skip if nothing could be judged."""
    answer = kit.ask(subject, question)
    for counts in answer.counts:
        attach(item, counts)
    if answer.failures:
        lines = [line for failure in answer.failures for line in Group([failure]).lines()]
        pytest.fail("\n".join(lines), pytrace=False)
    if not any(counts.passed + counts.waived for counts in answer.counts):
        reasons = {
            reason: count for c in answer.counts for group in c.reasons.values() for reason, count in group.items()
        }
        pytest.skip(listed(reasons))


def test_drawn(kit: Kit, subject: Subject, prop: str, request: pytest.FixtureRequest) -> None:
    check(kit, subject, Question("drawn", prop), request.node)


def test_vectors(kit: Kit, subject: Subject, topic: str, request: pytest.FixtureRequest) -> None:
    check(kit, subject, Question("vectors", topic), request.node)


def test_fixed_case(kit: Kit, subject: Subject, case: str, request: pytest.FixtureRequest) -> None:
    check(kit, subject, Question("fixed", case), request.node)
