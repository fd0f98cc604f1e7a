"""Runs of an implementation, and the comparison of two runs."""

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
    """Return the logits of the case's input, or of other token ids or another mask."""
    ids = case.token_ids if token_ids is None else token_ids
    return np.array(subject.ask(case, "logits", ids, case.is_real if is_real is None else is_real))


def in_pieces(subject: Subject, case: Case, cuts: tuple[int, ...], spare: int) -> Float[Array, "B T V"]:
    """Return the logits of calls over a cache that has `spare` more positions than the input."""
    return np.array(subject.ask(case, "in_pieces", case.token_ids, case.is_real, cuts, case.time + spare))


def call(subject: Subject, case: Case, token_ids: Array, padding_mask: Array | None) -> Float[Array, "B T V"]:
    """Return the logits of the public API."""
    return np.array(subject.ask(case, "call", token_ids, padding_mask))


def same(
    subject: Subject, case: Case, one: Array, two: Array, what: str, where: Bool[Array, "B T"] | None = None
) -> Judgement:
    """Judge the difference of two runs by sqrt(2) sigma, since both round.

    Args:
        what: the change between the runs, for the explanation.
        where: positions that are compared; None: all.
    """
    exact = truth(case).values["logits"]
    if one.shape != exact.shape or two.shape != exact.shape:
        return verdict(False, f"expected logits of shape {exact.shape}, got {one.shape} and {two.shape}")
    with np.errstate(invalid="ignore"):
        difference = (one.astype(np.float64) - two.astype(np.float64)) / np.sqrt(2.0)
    if where is not None:
        difference = np.where(where[:, :, None], difference, 0.0)
    [judgement] = judge(case, subject.tier, {"logits": exact + difference})
    if judgement.verdict == "fail":
        size = f"{judgement.z:.3g} times what rounding explains in two runs"
        return replace(judgement, explanation=f"{what}: logits at {judgement.where} change by {size}")
    return judgement


def verdict(holds: bool, otherwise: str) -> Judgement:
    """Judgement of a condition; `otherwise` explains the failure."""
    return Judgement(
        "logits", "pass" if holds else "fail", 0.0 if holds else np.inf, (0, 0), "" if holds else otherwise
    )
