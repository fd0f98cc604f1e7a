"""Two runs of one implementation, held against each other; and the runs."""

from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array, Bool, Float


def run(
    subject: Subject, case: Case, token_ids: Array | None = None, is_real: Array | None = None
) -> Float[Array, "B T V"]:
    """The model's logits, for the case's own input where no other is given."""
    ids = case.token_ids if token_ids is None else token_ids
    return np.array(subject.ask(case, "logits", ids, case.is_real if is_real is None else is_real))


def in_pieces(subject: Subject, case: Case, cuts: tuple[int, ...], spare: int) -> Float[Array, "B T V"]:
    return np.array(subject.ask(case, "in_pieces", case.token_ids, case.is_real, cuts, case.time + spare))


def call(subject: Subject, case: Case, token_ids: Array, padding_mask: Array | None) -> Float[Array, "B T V"]:
    """The logits of the front door."""
    return np.array(subject.ask(case, "call", token_ids, padding_mask))


def same(
    subject: Subject, case: Case, one: Array, two: Array, what: str, look: Bool[Array, "B T"] | None = None
) -> Judgement:
    """Two results of one question differ by the rounding of both: by sqrt(2) sigma."""
    exact = truth(case).values["logits"]
    if one.shape != exact.shape or two.shape != exact.shape:
        return verdict(False, f"expected logits of shape {exact.shape}, got {one.shape} and {two.shape}")
    with np.errstate(invalid="ignore"):
        difference = (one.astype(np.float64) - two.astype(np.float64)) / np.sqrt(2.0)
    if look is not None:
        difference = np.where(look[:, :, None], difference, 0.0)
    [found] = judge(case, subject.tier, {"logits": exact + difference})
    if found.verdict == "fail":
        text = f"{what}: logits at {found.where} change by {found.z:.3g} times what rounding explains in two runs"
        return replace(found, explanation=text)
    return found


def verdict(holds: bool, otherwise: str) -> Judgement:
    return Judgement(
        "logits", "pass" if holds else "fail", 0.0 if holds else np.inf, (0, 0), "" if holds else otherwise
    )
