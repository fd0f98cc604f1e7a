"""Asks an implementation: draws cases, checks a property on each, and keeps count. pytest and `bloomref conform` run on it."""

import time
import zlib
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.gradients import ONLY, UNITS
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.properties import Property
from bloomref.conformance.run.results import Tally
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.strategies import cases
from bloomref.conformance.strategies_lora import adapted_cases
from bloomref.conformance.subject import PROBE, Subject
from bloomref.errors import Unsupported

EXAMPLES = 20
USUAL = 24
"""Positions that a drawn case has at most, but for the long ones."""
SHRINK_SECONDS = 15.0
"""How long a failing case may be made smaller."""


@dataclass(eq=False)
class Runner:
    """How a run asks: how many cases a property gets, from which seed, and what is waived."""

    examples: int = EXAMPLES
    seed: int = 0
    waivers: Waivers = field(default_factory=Waivers)

    def ask(self, found: Property, subject: Subject, case: Case, tally: Tally) -> None:
        """One question. Raises Failure unless a waiver covers it."""
        covering = self.waivers.covering(found.name, subject.dtype, case)
        try:
            tally.hold(found.check(subject, case), covering)
        except Unsupported as error:
            tally.set_aside(str(error), covering)
        except Inconclusive as error:
            tally.inconclusive += 1
            tally.remember(str(error))
        except Failure:
            if not covering:
                tally.failed += 1
                raise
            tally.excuse(covering)

    def draw(self, found: Property, subject: Subject, tally: Tally) -> None:
        """Drawn cases, the same in every run of the same seed.

        Raises:
            Failure: of the smallest case that was found to fail.
        """
        shrinking = Shrinking()

        @seed(zlib.crc32(f"{self.seed} {found.name}".encode()))
        @settings(
            max_examples=-(-self.examples // found.share),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(case=drawn(found, subject))
        def each(case: Case) -> None:
            if not shrinking.is_known(case):
                counted = (
                    Tally(found.name, subject.dtype) if shrinking.failures else tally
                )  # smaller cases do not count
                try:
                    self.ask(found, subject, case, counted)
                except Failure as failure:
                    raise shrinking.note(failure) from failure.__cause__

        each()


def drawn(found: Property, subject: Subject) -> st.SearchStrategy[Case]:
    """Cases that the implementation takes and about which the property says something."""
    able, longest = subject.adapter.capabilities, min(USUAL, found.longest or USUAL)
    if found.adapter:
        return adapted_cases(able, found.adapter, kinds=found.kinds, max_time=longest)
    return cases(
        able,
        kinds=found.kinds,
        min_batch=found.rows,
        min_time=found.time,
        max_time=longest,
        long=found.longest is None,
    )


def applies(found: Property, case: Case) -> bool:
    fits = found.time <= case.time <= (found.longest or case.time)
    fits = fits and found.adapter == (case.lora.form if case.lora else "")
    return fits and case.batch >= found.rows and case.kind in found.kinds


def lacking(found: Property, subject: Subject) -> str | None:
    """Why the property cannot be asked of this implementation, or None."""
    able = subject.adapter.capabilities
    methods = [name for name in found.needs if not hasattr(subject.model(PROBE), name)]
    if methods:
        return f"{subject.adapter.name} has no method {', '.join(methods)}"
    if found.adapter and found.adapter not in able.adapters:
        return f"{subject.adapter.name} declares no adapters in the form of {found.adapter}"
    if found.name == "gradients" and subject.dtype not in UNITS:
        return ONLY
    if not set(found.kinds) & set(able.masks):
        return f"{subject.adapter.name} declares no masks of {', '.join(found.kinds)}"
    if found.rows > 1 and "batch" not in able.features:
        return f"{subject.adapter.name} declares no batches"
    if found.name == "repeat" and not able.repeatable:
        return f"{subject.adapter.name} declares that it is not repeatable"
    return None


class Shrinking:
    """Once a case fails, hypothesis tries smaller ones. Failures are remembered, and after a while only those count."""

    def __init__(self) -> None:
        self.failures: dict[Case, Failure] = {}
        self.since = 0.0

    def is_known(self, case: Case) -> bool:
        """Raises what is known to fail; whether to leave the case alone."""
        if case in self.failures:
            raise self.failures[case]
        return bool(self.failures) and time.monotonic() - self.since > SHRINK_SECONDS

    def note(self, failure: Failure) -> Failure:
        if not self.failures:
            self.since = time.monotonic()
        self.failures[failure.case] = failure
        return failure
