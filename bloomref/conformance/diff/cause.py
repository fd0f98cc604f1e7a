"""The cause of a failure: its case runs again with everything that the implementation shows.

The result is a few lines: the first wrong intermediate with its clauses, the known mistake that explains it, and the
command that repeats it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import RAISED, Failure
from bloomref.conformance.diff import backward, likely_mistakes, origins
from bloomref.conformance.diff.judged_run import JudgedRun, judged_run, runs_over_cache
from bloomref.conformance.diff.recordings import without_recordings
from bloomref.conformance.diff.repeat_command import repeat
from bloomref.conformance.diff.variants import variants
from bloomref.conformance.diff.wording import listed, size, starts
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.run.texts import short
from bloomref.conformance.subject import PROBE, Subject

UNTRACED = ("masks", "id-dtypes", "empty", "refusals", "repeat")
"""Properties whose failure says all: no intermediate shows more."""


def cause(subject: Subject, failure: Failure) -> list[str]:
    """Return the cause of a failure, a line each; never raises."""
    lines: list[str] = []
    try:
        with np.errstate(all="ignore"):
            lines.extend(_lines(subject, failure))
    except Exception as error:  # a report of failures must not fail itself
        lines.append(f"the search for the cause ended: {type(error).__name__}: {short(str(error))}")
    return lines


def _lines(subject: Subject, failure: Failure) -> Iterator[str]:
    case = failure.case
    if failure.name in UNTRACED or case is PROBE or failure.judgement.name == RAISED:
        return
    if failure.name == "gradients" or backward.is_gradient(failure.judgement.name):
        yield from _backward(subject, failure)
        return
    whole = judged_run(subject, case)
    if whole.first is not None:
        yield from _explained(subject, failure, whole)
        return
    yield whole.no_error
    for words, case in variants(failure.name, failure.case):
        other = judged_run(subject, case)
        if other.first is not None:
            yield f"in a call {words}:"
            yield from _explained(subject, failure, other)
            return
    for over_cache in runs_over_cache(subject, failure):
        if over_cache.first is not None:
            room = f"a cache with room for {over_cache.capacity} positions (the input has {case.time})"
            yield f"only over {room}, in calls that begin at {starts(over_cache.cuts)}:"
            yield from _explained(subject, failure, over_cache)
            return
    if failure.name == "step":
        yield "calls over a cache are right, too: it is the decoding step alone (BKD-17)"


def _explained(subject: Subject, failure: Failure, run: JudgedRun) -> Iterator[str]:
    """Yield the first wrong intermediate, what is right, the known mistake, and the command."""
    run, recordings = without_recordings(run)
    yield from recordings
    if run.first is not None:
        yield _first(run, run.first)
        yield from _right(run, run.first)
        if run.case.lora is not None:
            yield from _bare(subject, run.case)
        yield from likely_mistakes.explained(subject, run, run.first)
    yield from repeat(subject, failure, run)


def _first(run: JudgedRun, first: Judgement) -> str:
    clauses = ", ".join(origins.clauses(first.name, run.capacity > 0, run.case.lora is not None))
    row, position = first.where or (0, 0)
    where = f"{first.name}, row {row}, position {position}"
    what = "first wrong intermediate" if run.is_traced else "wrong (the implementation shows no intermediates)"
    return f"{what}: {where}: {size(first)} ({clauses})"


def _right(run: JudgedRun, first: Judgement) -> Iterator[str]:
    """Yield how much before the first wrong intermediate is right, and which of its consumers are."""
    names = [judgement.name for judgement in run.judgements]
    before = names[: names.index(first.name)]
    if before:
        others = f" ({len(before)} intermediates)" if len(before) > 1 else ""
        yield f"everything before it is right, up to {before[-1]}{others}"
    right = {judgement.name for judgement in run.judgements if judgement.verdict == "pass"}
    fine = [name for name in origins.consumers(first.name, run.case.config.num_layers, names) if name in right]
    if fine:
        yield f"but {listed(fine)}, computed from it, is right"


def _bare(subject: Subject, case: Case) -> Iterator[str]:
    """Yield whether the model is right without its adapter."""
    bare = judged_run(subject, replace(case, lora=None))
    yield "without the adapter the model is " + ("right: it is the adapter" if bare.first is None else "wrong, too")


def _backward(subject: Subject, failure: Failure) -> Iterator[str]:
    """Yield the first wrong gradient of the backward pass, which others are wrong, and which are right."""
    case = failure.case
    outputs = backward.asked(subject, case)
    judgements = backward.judged(case, subject.dtype, outputs)
    wrong = [judgement for judgement in judgements if judgement.verdict == "fail"]
    right = [backward.short(judgement.name) for judgement in judgements if judgement.verdict == "pass"]
    if any(judgement.name == "loss" for judgement in wrong):
        forward = judged_run(subject, case)
        if forward.first is not None:
            yield "the loss is wrong because the forward pass is:"
            yield from _explained(subject, failure, forward)
            return
    if wrong:
        first, clauses = wrong[0], ", ".join(backward.clauses(wrong[0].name))
        yield f"first wrong gradient, from the loss backwards: {first.name}: {size(first)} ({clauses})"
        yield f"wrong: {listed([backward.short(judgement.name) for judgement in wrong])}; right: {listed(right or ['nothing'])}"
        yield from backward.tied_hint(case, outputs, [judgement.name for judgement in wrong])
        yield from likely_mistakes.named(backward.explanations(case, subject.dtype, outputs))
        yield from repeat(subject, failure, None)
