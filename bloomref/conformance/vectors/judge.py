"""The rule of the vectors: nothing but the expected numbers, sigma, and the mask. Clauses: VEC-6 ... VEC-9."""

from collections.abc import Mapping

import numpy as np

from bloomref.conformance.oracle.budgets import ENOUGH, LIMIT, Judgement
from bloomref.conformance.oracle.intermediates import observable, per_position
from bloomref.shapes import Array, Bool, Float


def judge(
    got: Mapping[str, Array], answer: Mapping[str, tuple[Array, Array]], tier: int, is_real: Bool[Array, "B T"]
) -> list[Judgement]:
    """One judgement of each tensor that is in both.

    Args:
        answer: name -> (expected, sigma), sigma of all tiers.
        tier: which of them.
    """
    shared = [name for name in answer if name in got]
    return [_judge(name, np.asarray(got[name]), answer[name][0], answer[name][1][tier], is_real) for name in shared]


def _judge(name: str, got: Array, expected: Array, sigma: Array, is_real: Array) -> Judgement:
    if np.isnan(sigma).any():
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: the dtype cannot hold this case")
    if got.shape != expected.shape:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: expected shape {expected.shape}, got {got.shape}")
    with np.errstate(all="ignore"):
        error = got.astype(np.float64) - expected
    if sigma.ndim == 0:
        return _whole(name, error, float(sigma))
    if not np.isfinite(error[observable(name, error, is_real)]).all():
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: not finite at a real position")
    with np.errstate(all="ignore"):
        return _by_position(name, per_position(name, error, is_real), sigma, is_real)


def _by_position(
    name: str, far: Float[Array, "B T"], sigma: Float[Array, "B T"], is_real: Bool[Array, "B T"]
) -> Judgement:
    judged = np.isfinite(sigma) & is_real
    z = np.where(judged & (far > 0.0), far / sigma, 0.0)
    if not z.size:
        return Judgement(name, "pass", 0.0, (0, 0), "")
    row, column = np.unravel_index(z.argmax(), z.shape)
    where, worst = (int(row), int(column)), float(z.max())
    text = f"{name} at {where}: rms error {far[where]:.2g}, {worst:.2g} times sigma (limit {LIMIT:g})"
    if worst > LIMIT:
        return Judgement(name, "fail", worst, where, text)
    enough = judged.sum() >= ENOUGH * is_real.sum()
    return Judgement(name, "pass" if enough else "inconclusive", worst, where, text)


def _whole(name: str, error: Array, sigma: float) -> Judgement:
    """One number for the whole tensor: the loss, a gradient."""
    far = float(np.sqrt(np.mean(np.square(error)))) if error.size else 0.0
    if not np.isfinite(far):
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: not finite")
    if not np.isfinite(sigma):
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: rounding alone may change it")
    z = far / sigma if far else 0.0
    return Judgement(
        name, "pass" if z <= LIMIT else "fail", z, (0, 0), f"{name}: rms error {far:.2g}, {z:.2g} times sigma"
    )
