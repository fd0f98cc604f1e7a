"""The difference of one intermediate in units of the error that rounding explains (NUM-8)."""

from dataclasses import dataclass

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, worst_position
from bloomref.conformance.oracle.intermediates import observable, per_position
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Bool, Float


@dataclass(frozen=True)
class Comparison:
    """One intermediate of both operands.

    Args:
        name: of the intermediate (MOD-8).
        z: largest rms difference at a position, divided by the rounding error that both budgets explain there.
        relative: rms difference divided by the rms of the truth, over all positions.
        where: (batch row, position) of the largest z; None for a tensor without positions, such as a gradient.
        judged: True if at least one position can be judged.
    """

    name: str
    z: float
    relative: float
    where: tuple[int, int] | None
    judged: bool = True

    @property
    def differs(self) -> bool:
        """True if rounding does not explain the difference."""
        return self.judged and not self.z <= LIMIT


def measure(
    case: Case, name: str, error: Array, allowed: Float[Array, "B T"], graded: Bool[Array, "B T"]
) -> Comparison:
    """Compare the error of an intermediate with its budget; an error that is not finite has an infinite Z.

    Args:
        error: difference of two outputs.
        allowed: rms error that rounding explains at each position.
        graded: positions where `allowed` describes rounding.
    """
    signal = per_position(name, truth(case).values[name], case.is_real)
    rms = rms_error(case, name, error)
    judged = graded & (allowed <= MAX_NOISE * signal)
    z, where = worst_position(rms, allowed, judged)
    norm = np.sqrt(np.square(signal).sum())
    relative = float(np.sqrt(np.square(rms).sum()) / norm) if norm else 0.0
    return Comparison(name, z, relative, where, bool(judged.any()))


def rms_error(case: Case, name: str, error: Array) -> Float[Array, "B T"]:
    """Root mean square error at each position; infinite where a number that counts is not finite."""
    lost = observable(name, error, case.is_real) & ~np.isfinite(error)
    rms = per_position(name, np.where(np.isfinite(error), error, 0.0), case.is_real)
    if not lost.any():
        return rms
    return np.where(per_position(name, lost.astype(np.float64), case.is_real) > 0.0, np.inf, rms)
