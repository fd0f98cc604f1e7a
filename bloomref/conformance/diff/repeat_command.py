"""The command that repeats a failure: `bloomref diff` on the same case."""

import shlex
from collections.abc import Iterator
from dataclasses import replace

from bloomref.conformance.checks.outcome import Failure, code
from bloomref.conformance.diff.judged_run import JudgedRun
from bloomref.conformance.diff.operands import name_of
from bloomref.conformance.run.failures import REPEAT
from bloomref.conformance.subject import Subject


def repeat(subject: Subject, failure: Failure, run: JudgedRun | None) -> Iterator[str]:
    """Yield the command that shows the same; `run` is the run that is wrong, or None for gradients."""
    case = failure.case if run is None else run.case
    if case.arrays is not failure.case.arrays:
        return  # no expression and no vector has this input
    cuts = () if run is None else run.cuts
    words = ["bloomref", "diff", name_of(subject.implementation), "--dtype", failure.dtype]
    if case.arrays is not None:
        words += ["--vector", case.name]
        words += ["--cuts", ",".join(map(str, cuts))] * (cuts not in ((), case.cuts))
    else:
        words += ["--case", code(replace(case, flags=frozenset(), name="", cuts=cuts)).replace("'", '"')]
    words += ["--gradients"] * (run is None)
    words += ["--capacity", str(run.capacity)] if run is not None and run.capacity else []
    yield f"{REPEAT}{shlex.join(words)}"
