"""The cause of a failure: its case runs again with everything that the implementation shows.

The result is a few lines: the first wrong intermediate with its clauses, the known mistake that explains it, and the
command that repeats it.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import RAISED, Failure, code
from bloomref.conformance.diff import backward, origins
from bloomref.conformance.diff.explain import Explanation, can_explain, explain
from bloomref.conformance.diff.operands import Operand, name_of, results, traced
from bloomref.conformance.diff.variants import variants
from bloomref.conformance.mistakes import MISTAKES, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, Judgement, judge
from bloomref.conformance.oracle.intermediates import observable
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.run.failures import REPEAT
from bloomref.conformance.run.texts import short
from bloomref.conformance.subject import PROBE, Subject
from bloomref.shapes import Array

SECONDS = 10.0
"""Time limit of the search for a known mistake; large cases take seconds for each."""
UNTRACED = ("masks", "id-dtypes", "empty", "refusals", "repeat")
"""Properties whose failure says all: no intermediate shows more."""
OF_A_CACHE = ("pieces", "cache", "trace-pieces", "step", "tokens", "lora", "lora-heads")
"""Properties whose failures may need calls over a cache."""
LOSSY = ("norm", "probabilities", "gelu")
"""Ends of the names of intermediates that may be right although their input is wrong."""
SMALLEST_WIDTH = 3
"""Hidden width below which layer norms lose nearly everything, so that right logits do not show right states."""
MANY = 4
"""Most names that a line lists."""


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
    for over_cache in _calls(subject, failure):
        if over_cache.first is not None:
            room = f"a cache with room for {over_cache.capacity} positions (the input has {case.time})"
            yield f"only over {room}, in calls that begin at {_starts(over_cache.cuts)}:"
            yield from _explained(subject, failure, over_cache)
            return
    if failure.name == "step":
        yield "calls over a cache are right, too: it is the decoding step alone (BKD-17)"


# --- one run of the case ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class JudgedRun:
    """The intermediates that an implementation shows of one case, judged.

    Args:
        cuts, capacity: of the calls over a cache; capacity 0: one call.
        values: the intermediates by name.
        judgements: one for each, in the order of computation.
        is_traced: True if they are more than results.
    """

    case: Case
    tier: Tier
    cuts: tuple[int, ...]
    capacity: int
    values: dict[str, Array] = field(repr=False)
    judgements: list[Judgement] = field(repr=False)
    is_traced: bool = False

    @property
    def wrong(self) -> list[Judgement]:
        return [judgement for judgement in self.judgements if judgement.verdict == "fail"]

    @property
    def first(self) -> Judgement | None:
        """The first wrong intermediate."""
        return next(iter(self.wrong), None)

    @property
    def no_error(self) -> str:
        """Sentence for a run without a wrong intermediate."""
        what = f"all {len(self.judgements)} intermediates are" if self.is_traced else "the result is"
        return f"in one call of the whole input, {what} right"


def judged_run(subject: Subject, case: Case, cuts: tuple[int, ...] = (), capacity: int = 0) -> JudgedRun:
    """Run the implementation on a case and judge its trace; if that is right or missing, its results.

    The cuts of the case are not used, so that all runs share its truth and its budget.

    Args:
        capacity: of the cache for calls that begin at `cuts`; 0: one call without a cache.

    Raises:
        Raised: the implementation raised; Unsupported: it cannot run the case.
    """
    over_cache = (cuts, capacity) if capacity else ()
    values = traced(subject, case, over_cache)
    judgements = judge(case, subject.tier, values)
    is_traced = len(values) > 1
    if not any(judgement.verdict == "fail" for judgement in judgements):
        values |= results(subject, case, over_cache)
        judgements = judge(case, subject.tier, values)
    return JudgedRun(case, subject.tier, cuts, capacity, values, judgements, is_traced)


def _calls(subject: Subject, failure: Failure) -> Iterator[JudgedRun]:
    """Yield runs over a cache: as the case divides the input, in one call, and position by position."""
    case = failure.case
    if failure.name not in OF_A_CACHE and not case.cuts:
        return
    if not any(subject.offers(case, method) for method in ("in_pieces", "trace_in_pieces")):
        return
    spare, steps = case.time + 1 + case.seed % 3, tuple(range(max(1, case.time // 2), case.time))
    for cuts, capacity in ((case.cuts, case.time), (case.cuts, spare), ((), case.time + 64), (steps, spare)):
        yield judged_run(subject, case, cuts, capacity)


def _starts(cuts: tuple[int, ...]) -> str:
    shown = [str(start) for start in (0, *cuts)]
    return ", ".join(shown if len(shown) <= 2 * MANY else [*shown[:MANY], "...", shown[-1]])


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _explained(subject: Subject, failure: Failure, run: JudgedRun) -> Iterator[str]:
    """Yield the first wrong intermediate, what is right, the known mistake, and the command."""
    run, recordings = _without_recordings(run)
    yield from recordings
    if run.first is not None:
        yield _first(run, run.first)
        yield from _right(run, run.first)
        if run.case.lora is not None:
            yield from _bare(subject, run.case)
        yield from _mistake(subject, run, run.first)
    yield from _repeat(subject, failure, run)


def _first(run: JudgedRun, first: Judgement) -> str:
    clauses = ", ".join(origins.clauses(first.name, run.capacity > 0, run.case.lora is not None))
    row, position = first.where or (0, 0)
    where = f"{first.name}, row {row}, position {position}"
    what = "first wrong intermediate" if run.is_traced else "wrong (the implementation shows no intermediates)"
    return f"{what}: {where}: {_size(first)} ({clauses})"


def _size(judgement: Judgement) -> str:
    if np.isfinite(judgement.z):
        return f"{judgement.z:.3g} times the error that rounding explains"
    return judgement.explanation.removeprefix(f"{judgement.name} at {judgement.where}: ").removeprefix(
        f"{judgement.name}: "
    )


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
        yield f"but {_names(fine)}, computed from it, is right"


def _without_recordings(run: JudgedRun) -> tuple[JudgedRun, list[str]]:
    """Separate intermediates that are wrong although what is computed from them is right; the rest is the cause."""
    recorded = [judgement.name for judgement in run.wrong if _is_recording(run, judgement.name)]
    if not recorded:
        return run, []
    values = {name: value for name, value in run.values.items() if name not in recorded}
    rest = [judgement for judgement in run.judgements if judgement.name not in recorded]
    held = [*_same(run, recorded[0]), *_later(run, recorded[0])][-1:]
    other = f"; {recorded[0]} holds the numbers of {held[0]}" if held else ""
    verb, them = ("is", "it") if len(recorded) == 1 else ("are", "them")
    text = (
        f"{_names(recorded)} {verb} wrong, but what is computed from {them} is right: the recording changes after it "
        f"was made (aliased memory?){other} (MOD-8, MOD-11)"
    )
    return replace(run, values=values, judgements=rest), [text]


def _is_recording(run: JudgedRun, name: str) -> bool:
    """True if the model computed with other numbers than it recorded: a right result needs a right input."""
    verdicts = {judgement.name: judgement.verdict for judgement in run.judgements}
    consumers = origins.consumers(name, run.case.config.num_layers, verdicts)
    right = [consumer for consumer in consumers if verdicts[consumer] == "pass"]
    lossless = [consumer for consumer in consumers if not consumer.endswith(LOSSY)]
    if _later(run, name) or (lossless and set(lossless) <= set(right)):
        return True
    is_sound = verdicts.get("logits") == "pass" and run.case.config.hidden_dim >= SMALLEST_WIDTH
    return bool(right) and ((is_sound and bool(lossless)) or bool(_same(run, name)))


def _later(run: JudgedRun, name: str) -> list[str]:
    """Later intermediates whose recordings have the same bits: all are one array."""
    names = [judgement.name for judgement in run.judgements]
    return [n for n in names[names.index(name) + 1 :] if np.array_equal(run.values[n], run.values[name])]


def _same(run: JudgedRun, name: str) -> list[str]:
    """Other intermediates whose right numbers a recording holds."""
    output, exact = run.values[name], truth(run.case).values
    others = [other for other, value in exact.items() if other != name and value.shape == output.shape]
    return [other for other in others if _holds(run, other, output)]


def _holds(run: JudgedRun, other: str, output: Array) -> bool:
    counted = observable(other, output, run.case.is_real)
    if not np.isfinite(output[counted].astype(np.float64)).all():
        return False
    [judgement] = judge(run.case, run.tier, {other: output})
    return judgement.verdict == "pass" and judgement.z <= LIMIT


def _names(names: list[str]) -> str:
    shown = names if len(names) <= MANY else [*names[:MANY], f"{len(names) - MANY} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _bare(subject: Subject, case: Case) -> Iterator[str]:
    """Yield whether the model is right without its adapter."""
    bare = judged_run(subject, replace(case, lora=None))
    yield "without the adapter the model is " + ("right: it is the adapter" if bare.first is None else "wrong, too")


# --- known mistakes ---------------------------------------------------------------------------------------------------


def _mistake(subject: Subject, run: JudgedRun, first: Judgement) -> Iterator[str]:
    """Yield the known mistakes that match, or the one that comes close."""
    operand = Operand(subject.implementation.name, run.values, run.tier, run.capacity, run.cuts)
    since = time.monotonic()
    explanations = _explanations(run, operand, first)
    matches = [explanation for explanation in explanations if explanation.matches]
    if matches:
        yield from _named([explanation.mistake for explanation in matches])
    elif explanations:
        close = explanations[0]
        yield f"it is close to {_described(close.mistake)} ({close.share:.0%} of the error)"
    else:
        is_late = time.monotonic() - since > SECONDS
        yield "no known mistake explains it" + f", of those tried in {SECONDS:g} s; diff tries all" * is_late


def _named(matches: Sequence[Mistake]) -> Iterator[str]:
    """Yield the known mistakes that match."""
    if matches:
        yield f"it matches {_described(matches[0])}"
    if matches[1:]:
        yield f"the same effect on this input: {_names([mistake.name for mistake in matches[1:]])}"


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


# --- gradients --------------------------------------------------------------------------------------------------------


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
        yield f"first wrong gradient, from the loss backwards: {first.name}: {_size(first)} ({clauses})"
        yield f"wrong: {_names([backward.short(judgement.name) for judgement in wrong])}; right: {_names(right)}"
        yield from backward.tied_hint(case, outputs, [judgement.name for judgement in wrong])
        yield from _named(backward.explanations(case, subject.dtype, outputs))
        yield from _repeat(subject, failure, None)


# --- the command ------------------------------------------------------------------------------------------------------


def _repeat(subject: Subject, failure: Failure, run: JudgedRun | None) -> Iterator[str]:
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
