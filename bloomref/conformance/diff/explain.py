"""Explain an operand by known mistakes: each is run in float64, and explains it if what remains is rounding."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.diff.measure import measure, rms_error
from bloomref.conformance.diff.operands import Operand
from bloomref.conformance.mistakes import NO_INTERMEDIATE, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, budget
from bloomref.conformance.oracle.montecarlo import SAMPLES, Noise
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Float

CLOSE = 5
"""Number of mistakes that are compared again with the budget of the mutant, whose rounding noise may be larger."""
PARTLY = 0.9
"""Smallest explained share at which a mistake is reported although the rest exceeds the budget."""


@dataclass(frozen=True)
class Explanation:
    """A mistake that an operand may make.

    Args:
        mistake: the known mistake.
        operand: name of the operand.
        z: largest Z of the operand against a model that makes the mistake.
        share: share of the difference that the mistake explains, in rms over all intermediates.
        begins: True if the mistake leaves nothing but rounding of the first intermediate that is wrong.
    """

    mistake: Mistake
    operand: str
    z: float
    share: float
    begins: bool = False

    @property
    def matches(self) -> bool:
        """True if the mistake leaves nothing but rounding."""
        return self.z <= LIMIT


def can_explain(case: Case, mistake: Mistake, first: str) -> bool:
    """True if the mistake can change the first intermediate that differs: it changes none before its own first.

    The first of a mistake in adapters depends on the adapted modules.
    """
    order = list(truth(case).values)
    if mistake.first == NO_INTERMEDIATE:
        return False
    if mistake.is_of_adapters:
        return case.lora is not None
    return mistake.first in order and order.index(mistake.first) <= order.index(first)


def best_first(explanation: Explanation) -> tuple[bool, float]:
    """Sort key: what matches comes first, then what explains most."""
    return not explanation.matches, -explanation.share


def explain(case: Case, operand: Operand, mistakes: Iterable[Mistake], end: float = math.inf) -> list[Explanation]:
    """Return the mistakes that explain an operand: those that match, then those that explain most of its error.

    Args:
        end: the time of `time.monotonic` at which to stop; with one, the first matches are enough.
    """
    assert operand.tier is not None
    allowed = budget(case, operand.tier).sigma
    mistakes = takewhile(lambda _: time.monotonic() < end, mistakes)
    explanations = [
        _explanation(case, operand, mistake, _outputs(case, operand, mistake), allowed) for mistake in mistakes
    ]
    explanations.sort(key=best_first)
    matched, others = [e for e in explanations if e.matches], [e for e in explanations if not e.matches]
    others.sort(key=lambda e: not e.begins)  # a mistake that loses digits explains the first digits lost alone
    close = [] if matched and end < math.inf else [e.mistake for e in others[: max(CLOSE - len(matched), 0)]]
    retried = [_with_own_noise(case, operand, mistake) for mistake in close if time.monotonic() < end]
    return [*matched, *(e for e in sorted(retried, key=best_first) if e.matches or e.share > PARTLY)]


def _outputs(case: Case, operand: Operand, mistake: Mistake) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return mistake.model.of(case).run(case.token_ids, case.is_real, *operand.run_of(case))


def _explanation(
    case: Case, operand: Operand, mistake: Mistake, mutant: dict[str, Array], allowed: dict[str, Array]
) -> Explanation:
    """Compare an operand with the outputs of a mutant."""
    assert operand.tier is not None
    graded, comparisons, rest, total = budget(case, operand.tier).graded, [], 0.0, 0.0
    begins: bool | None = None
    for name in (name for name in truth(case).values if name in operand.values and name in mutant):
        output = operand.values[name].astype(np.float64)
        with np.errstate(all="ignore"):
            residual, error = _residual(output, mutant[name]), output - truth(case).values[name]
        comparisons.append(measure(case, name, residual, allowed[name], graded[name]))
        if begins is None and measure(case, name, error, allowed[name], graded[name]).differs:
            begins = not comparisons[-1].differs
        rest += _squared_z(case, name, residual, allowed[name])
        total += _squared_z(case, name, error, allowed[name])
    share = 1.0 - np.sqrt(rest / total) if 0.0 < total < np.inf and np.isfinite(rest) else float(rest == 0.0)
    z = max((comparison.z for comparison in comparisons if comparison.judged), default=np.inf)
    return Explanation(mistake, operand.name, z, float(share), bool(begins))


def _residual(output: Array, mutant: Array) -> Array:
    """Difference of two outputs; zero where neither is finite."""
    if output.shape != mutant.shape:
        return np.full(output.shape, np.inf)
    return np.where(~np.isfinite(output) & ~np.isfinite(mutant), 0.0, output - mutant)


def _squared_z(case: Case, name: str, error: Array, allowed: Float[Array, "B T"]) -> float:
    """Sum over the positions of the squared error in units of the budget."""
    rms = rms_error(case, name, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.square(np.where(rms > 0.0, rms / allowed, 0.0)).sum())


def _with_own_noise(case: Case, operand: Operand, mistake: Mistake) -> Explanation:
    """Compare an operand with a mutant, within the larger of the budgets of the case and of the mutant."""
    assert operand.tier is not None
    mutant = _outputs(case, operand, mistake)
    own = _own_sigma(case, operand, mistake, mutant)
    allowed = {name: np.maximum(value, own.get(name, 0.0)) for name, value in budget(case, operand.tier).sigma.items()}
    return _explanation(case, operand, mistake, mutant, allowed)


class FiniteNoise(Noise):
    """Noise that leaves infinities unchanged: a mutant may have them where the reference has none."""

    def _added(self, x: Array, size: Array, u: float) -> Array:
        return np.where(np.isfinite(x), super()._added(x, size, u), x)


def _own_sigma(
    case: Case, operand: Operand, mistake: Mistake, mutant: dict[str, Array]
) -> dict[str, Float[Array, "B T"]]:
    """Rounding error of a model that makes the mistake, by Monte-Carlo arithmetic; at least one rounding of the
    output.
    """
    assert operand.tier is not None
    tier, model = operand.tier, mistake.model.of(case)
    model.arithmetic = FiniteNoise(tier, np.random.Generator(np.random.SFC64(case.seed)))
    squares = {name: np.zeros(case.is_real.shape) for name in mutant}
    with np.errstate(all="ignore"):
        for _ in range(SAMPLES):
            sample = model.run(case.token_ids, case.is_real, *operand.run_of(case))
            for name in squares:
                squares[name] += np.square(rms_error(case, name, _residual(sample[name], mutant[name])))
        rounding = {
            name: rms_error(case, name, value) * tier.storage / math.sqrt(3.0) for name, value in mutant.items()
        }
    return {name: np.maximum(np.sqrt(total / SAMPLES), rounding[name]) for name, total in squares.items()}
