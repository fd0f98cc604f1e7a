"""Judge the answer to a vector from the expected numbers, sigma and the mask alone. Clauses: VEC-6 ... VEC-9."""

from collections.abc import Mapping

import numpy as np

from bloomref.conformance.oracle.budgets import LIMIT, MIN_JUDGED, Judgement, worst_position
from bloomref.conformance.oracle.intermediates import observable, per_position
from bloomref.shapes import Array, Bool, Float


def judge(
    outputs: Mapping[str, Array], answer: Mapping[str, tuple[Array, Array]], tier: int, is_real: Bool[Array, "B T"]
) -> list[Judgement]:
    """Return a judgement of each tensor that is in both `outputs` and `answer`.

    Args:
        outputs: tensors of an implementation.
        answer: name -> (expected, sigma), with the tiers as the first axis of sigma.
        tier: index of the tier of the implementation.
        is_real: the mask; padding is not judged.
    """
    return [
        _judge(name, np.asarray(outputs[name]), expected, sigma[tier], is_real)
        for name, (expected, sigma) in answer.items()
        if name in outputs
    ]


def _judge(name: str, output: Array, expected: Array, sigma: Array, is_real: Array) -> Judgement:
    if np.isnan(sigma).any():
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: the dtype cannot represent this case")
    if output.shape != expected.shape:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: expected shape {expected.shape}, got {output.shape}")
    with np.errstate(all="ignore"):
        error = output.astype(np.float64) - expected
    if sigma.ndim == 0:
        return _whole(name, error, float(sigma))
    if not np.isfinite(error[observable(name, error, is_real)]).all():
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: not finite at a real position")
    with np.errstate(all="ignore"):
        return _by_position(name, per_position(name, error, is_real), sigma, is_real)


def _by_position(
    name: str, rms: Float[Array, "B T"], sigma: Float[Array, "B T"], is_real: Bool[Array, "B T"]
) -> Judgement:
    judged = np.isfinite(sigma) & is_real
    if not judged.size:
        return Judgement(name, "pass", 0.0, (0, 0), "")
    z, where = worst_position(rms, sigma, judged)
    text = f"{name} at {where}: rms error {rms[where]:.2g}, {z:.2g} times sigma (limit {LIMIT:g})"
    if z > LIMIT:
        return Judgement(name, "fail", z, where, text)
    if judged.sum() >= MIN_JUDGED * is_real.sum():
        return Judgement(name, "pass", z, where, text)
    share = judged.sum() / is_real.sum()
    reason = f"{name}: only {share:.0%} of the positions can be judged; at the others, rounding alone may change it"
    return Judgement(name, "inconclusive", z, where, reason)


def _whole(name: str, error: Array, sigma: float) -> Judgement:
    """Judge a tensor with a single sigma: the loss, or a gradient."""
    rms = float(np.sqrt(np.mean(np.square(error)))) if error.size else 0.0
    if not np.isfinite(rms):
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: not finite")
    if not np.isfinite(sigma):
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: rounding alone may change it completely")
    z = rms / sigma if rms else 0.0
    return Judgement(
        name, "pass" if z <= LIMIT else "fail", z, (0, 0), f"{name}: rms error {rms:.2g}, {z:.2g} times sigma"
    )
