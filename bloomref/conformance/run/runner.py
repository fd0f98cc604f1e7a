"""Draws cases, checks a property on each, and counts the outcomes. The pytest plugin and `bloomref conform` use it."""

import time
import zlib
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.properties import Property
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.strategies import cases
from bloomref.conformance.strategies_lora import adapted_cases
from bloomref.conformance.subject import PROBE, NotAsked, Subject

EXAMPLES = 20
"""Default number of cases drawn for each property."""
USUAL_TIME = 24
"""Largest number of positions of a drawn case, except for the occasional long one."""
SHRINK_SECONDS = 15.0
"""Time limit for shrinking a failing case."""


@dataclass(eq=False)
class Runner:
    """Settings of a run.

    Args:
        examples: number of cases drawn for each property.
        seed: the same seed draws the same cases.
    """

    examples: int = EXAMPLES
    seed: int = 0
    waivers: Waivers = field(default_factory=Waivers)

    def ask(self, prop: Property, subject: Subject, case: Case, counts: Counts) -> None:
        """Check one property on one case and count the outcome.

        Raises:
            Failure: unless a waiver covers it.
        """
        covering = self.waivers.covering(prop.name, subject.dtype, case)
        failure = counts.record(lambda: prop.check(subject, case), covering)
        if failure is not None:
            raise failure

    def number(self, prop: Property) -> int:
        """Number of cases that are drawn for a property."""
        return -(-self.examples // prop.share)

    def draw(self, prop: Property, subject: Subject, counts: Counts) -> None:
        """Check one property on drawn cases.

        Raises:
            Failure: for the smallest failing case that was found.
        """
        shrinking = Shrinking()

        @seed(zlib.crc32(f"{self.seed} {prop.name}".encode()))
        @settings(
            max_examples=self.number(prop),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(case=drawn(prop, subject))
        def check(case: Case) -> None:
            if not shrinking.is_known(case):
                # cases tried while shrinking are not counted
                counted = Counts(prop.name, subject.dtype) if shrinking.failures else counts
                try:
                    self.ask(prop, subject, case, counted)
                except Failure as failure:
                    shrinking.add(failure)
                    raise failure from failure.__cause__

        check()


def drawn(prop: Property, subject: Subject) -> st.SearchStrategy[Case]:
    """Cases that the implementation supports and to which the property applies."""
    able, longest = subject.implementation.capabilities, min(USUAL_TIME, prop.longest or USUAL_TIME)
    if prop.strategy is not None:
        return prop.strategy(able, subject.dtype).filter(lambda case: applies(prop, case))
    if prop.adapter:
        return adapted_cases(able, prop.adapter, kinds=prop.kinds, max_time=longest)
    return cases(
        able,
        kinds=prop.kinds,
        min_batch=prop.rows,
        min_time=prop.time,
        max_time=longest,
        long=prop.longest is None,
    )


def applies(prop: Property, case: Case) -> bool:
    """True if the property says something about the case."""
    fits = prop.time <= case.time <= (prop.longest or case.time)
    fits = fits and prop.adapter == (case.lora.form if case.lora else "")
    return fits and case.batch >= prop.rows and case.kind in prop.kinds


def lacking(prop: Property, subject: Subject) -> NotAsked | None:
    """Return why the implementation cannot be asked about the property, or None."""
    name, able = subject.implementation.name, subject.implementation.capabilities
    methods = [method for method in prop.needs if not subject.offers(PROBE, method)]
    if methods:
        return NotAsked(f"{name} has no method {', '.join(methods)}")
    if prop.adapter and prop.adapter not in able.adapters:
        return NotAsked(f"{name} declares no adapters in the form of {prop.adapter}")
    if not set(prop.kinds) & set(able.masks):
        return NotAsked(f"{name} declares no masks of {', '.join(prop.kinds)}")
    if prop.rows > 1 and "batch" not in able.features:
        return NotAsked(f"{name} declares no batches")
    reason = prop.unasked(subject) if prop.unasked else None
    return NotAsked(reason) if isinstance(reason, str) else reason


class Shrinking:
    """State of shrinking: the failures so far. Past the time limit, hypothesis may only return to these."""

    def __init__(self) -> None:
        self.failures: dict[Case, Failure] = {}
        self.since = 0.0

    def is_known(self, case: Case) -> bool:
        """Return True if the time is up.

        Raises:
            Failure: if the case is known to fail.
        """
        if case in self.failures:
            raise self.failures[case]
        return bool(self.failures) and time.monotonic() - self.since > SHRINK_SECONDS

    def add(self, failure: Failure) -> None:
        if not self.failures:
            self.since = time.monotonic()
        self.failures[failure.case] = failure
