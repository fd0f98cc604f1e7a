"""Recordings that changed after they were made: wrong intermediates whose consumers are right."""

from dataclasses import replace

import numpy as np

from bloomref.conformance.diff import origins
from bloomref.conformance.diff.judged_run import JudgedRun
from bloomref.conformance.diff.wording import listed
from bloomref.conformance.oracle.budgets import LIMIT, judge
from bloomref.conformance.oracle.intermediates import observable
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array

LOSSY = ("norm", "probabilities", "gelu")
"""Ends of the names of intermediates that may be right although their input is wrong."""
SMALLEST_WIDTH = 3
"""Hidden width below which layer norms lose nearly everything, so that right logits do not show right states."""


def without_recordings(run: JudgedRun) -> tuple[JudgedRun, list[str]]:
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
        f"{listed(recorded)} {verb} wrong, but what is computed from {them} is right: the recording changes after it "
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
