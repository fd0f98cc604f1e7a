"""Lines about the cause of a failure: the first wrong intermediate, its clause, the mistake that it looks like."""

from collections.abc import Callable, Sequence
from importlib import import_module

from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.subject import Subject

MODULE = "bloomref.conformance.diff.cause"


def likely_cause(subject: Subject) -> Callable[[Failure], Sequence[str]]:
    """Return a function from a failure of the subject to lines about its cause. It never raises."""

    def lines(failure: Failure) -> Sequence[str]:
        try:
            return list(import_module(MODULE).cause(subject, failure))
        except ModuleNotFoundError:
            return []
        except Exception as error:  # an explanation must not turn a report into an error
            return [f"cause    not traced: {type(error).__name__}: {error}"]

    return lines
