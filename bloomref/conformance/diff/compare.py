"""Compare two implementations on one case: the first intermediate that differs, by how much,
and which known mistake explains it.

The intermediates of both are compared in the order of computation, each with the error that rounding explains (NUM-8).
Then every mistake of the catalogue is run in float64. A mistake explains an operand if what remains is rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.diff.operands import Operand
from bloomref.conformance.mistakes import MISTAKES, NO_INTERMEDIATE, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, budget, worst_position
from bloomref.conformance.oracle.intermediates import observable, per_position
from bloomref.conformance.oracle.matched_filter import Amplitude, project
from bloomref.conformance.oracle.montecarlo import SAMPLES, Noise
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.errors import invalid
from bloomref.shapes import Array, Bool, Float

CLOSE = 5
"""Number of mistakes that are compared again with the budget of the mutant, whose rounding noise may be larger."""
PARTLY = 0.9
"""Smallest explained share at which a mistake is reported although the rest exceeds the budget."""


@dataclass(frozen=True)
class Comparison:
    """One intermediate of both operands.

    Args:
        name: of the intermediate (MOD-8).
        z: largest rms difference at a position, divided by the rounding error that both budgets explain there.
        relative: rms difference divided by the rms of the truth, over all positions.
        where: (batch row, position) of the largest z.
        judged: True if at least one position can be judged.
    """

    name: str
    z: float
    relative: float
    where: tuple[int, int]
    judged: bool = True

    @property
    def differs(self) -> bool:
        """True if rounding does not explain the difference."""
        return self.judged and not self.z <= LIMIT


@dataclass(frozen=True)
class Explanation:
    """A mistake that an operand may make.

    Args:
        mistake: the known mistake.
        operand: name of the operand.
        z: largest Z of the operand against a model that makes the mistake.
        share: share of the difference that the mistake explains, in rms over all intermediates.
    """

    mistake: Mistake
    operand: str
    z: float
    share: float

    @property
    def matches(self) -> bool:
        """True if the mistake leaves nothing but rounding."""
        return self.z <= LIMIT


@dataclass(frozen=True, eq=False)
class Difference:
    """Result of `diff`.

    Args:
        case: the model and input that both operands ran.
        operands: the two operands.
        comparisons: one for each common intermediate, in the order of computation.
        explanations: the known mistakes that explain the difference, best first.
        below_noise: (operand, amplitude) of mistakes that show although every intermediate is within its budget.
    """

    case: Case
    operands: tuple[Operand, Operand]
    comparisons: list[Comparison]
    explanations: list[Explanation] = field(default_factory=list)
    below_noise: list[tuple[str, Amplitude]] = field(default_factory=list)

    @property
    def first(self) -> Comparison | None:
        """First intermediate outside its budget."""
        return next((comparison for comparison in self.comparisons if comparison.differs), None)

    @property
    def differ(self) -> bool:
        return self.first is not None


def diff(case: Case, a: Operand, b: Operand, mistakes: Sequence[Mistake] = MISTAKES) -> Difference:
    """Compare two operands, and explain the difference by known mistakes.

    Raises:
        InvalidInput: they have no intermediate in common, or of different shapes.
    """
    comparisons = [_compare(case, name, a, b) for name in common(case, a, b)]
    difference = Difference(case, (a, b), comparisons)
    if not difference.differ:
        return Difference(case, (a, b), comparisons, below_noise=_below_noise(case, (a, b), mistakes))
    candidates = [mistake for mistake in mistakes if _can_explain(case, mistake, difference.first)]
    explanations = [
        explanation
        for operand in (a, b)
        if operand.tier and _is_off(case, operand)
        for explanation in explain(case, operand, candidates)
    ]
    return Difference(case, (a, b), comparisons, sorted(explanations, key=_best_first))


def common(case: Case, a: Operand, b: Operand) -> list[str]:
    """Return the names of the intermediates that both operands have, in the order of computation.

    Raises:
        InvalidInput: there is none, or one has not the shape of the truth.
    """
    names = [name for name in truth(case).values if name in a.values and name in b.values]
    if not names:
        raise invalid(
            "operands", "an intermediate that both have", f"{sorted(a.values)[:3]} and {sorted(b.values)[:3]}"
        )
    for operand in (a, b):
        for name in names:
            shape = truth(case).values[name].shape
            if operand.values[name].shape != shape:
                raise invalid(operand.name, f"{name} of shape {shape}", f"shape {operand.values[name].shape}")
    return names


# --- Z of each intermediate -------------------------------------------------------------------------------------------


def _compare(case: Case, name: str, a: Operand, b: Operand) -> Comparison:
    with np.errstate(all="ignore"):
        error = a.values[name].astype(np.float64) - b.values[name].astype(np.float64)
    budgets = [budget(case, operand.tier) for operand in (a, b) if operand.tier]
    allowed = np.sqrt(sum((np.square(each.sigma[name]) for each in budgets), np.zeros(case.is_real.shape)))
    graded = np.logical_and.reduce([case.is_real, *(each.graded[name] for each in budgets)])
    return measure(case, name, error, allowed, graded)


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


def _is_off(case: Case, operand: Operand) -> bool:
    """True if the operand is outside its budget around the oracle. Of two operands that differ, at least one is."""
    oracle = Operand("oracle", truth(case).values, None)
    return any(_compare(case, name, operand, oracle).differs for name in common(case, operand, oracle))


# --- explanation ------------------------------------------------------------------------------------------------------


def _best_first(explanation: Explanation) -> tuple[bool, float]:
    return not explanation.matches, -explanation.share


def explain(case: Case, operand: Operand, mistakes: Sequence[Mistake]) -> list[Explanation]:
    """Return the mistakes that explain an operand: those that match, then those that explain most of its error."""
    assert operand.tier is not None
    allowed = budget(case, operand.tier).sigma
    explanations = [_explanation(case, operand, mistake, _outputs(case, mistake), allowed) for mistake in mistakes]
    explanations.sort(key=_best_first)
    retried = [_with_own_noise(case, operand, e.mistake) for e in explanations[:CLOSE] if not e.matches]
    matched = [e for e in explanations if e.matches]
    return [*matched, *(e for e in sorted(retried, key=_best_first) if e.matches or e.share > PARTLY)]


def _outputs(case: Case, mistake: Mistake) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return mistake.model.of(case).run(case.token_ids, case.is_real, case.cuts)


def _explanation(
    case: Case, operand: Operand, mistake: Mistake, mutant: dict[str, Array], allowed: dict[str, Array]
) -> Explanation:
    """Compare an operand with the outputs of a mutant."""
    assert operand.tier is not None
    graded, comparisons, rest, total = budget(case, operand.tier).graded, [], 0.0, 0.0
    for name in (name for name in truth(case).values if name in operand.values and name in mutant):
        output = operand.values[name].astype(np.float64)
        with np.errstate(all="ignore"):
            residual, error = _residual(output, mutant[name]), output - truth(case).values[name]
        comparisons.append(measure(case, name, residual, allowed[name], graded[name]))
        rest += _squared_z(case, name, residual, allowed[name])
        total += _squared_z(case, name, error, allowed[name])
    share = 1.0 - np.sqrt(rest / total) if 0.0 < total < np.inf and np.isfinite(rest) else float(rest == 0.0)
    z = max((comparison.z for comparison in comparisons if comparison.judged), default=np.inf)
    return Explanation(mistake, operand.name, z, float(share))


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
    mutant = _outputs(case, mistake)
    own = mutant_sigma(case, mistake, operand.tier, mutant)
    allowed = {name: np.maximum(value, own.get(name, 0.0)) for name, value in budget(case, operand.tier).sigma.items()}
    return _explanation(case, operand, mistake, mutant, allowed)


class FiniteNoise(Noise):
    """Noise that leaves infinities unchanged: a mutant may have them where the reference has none."""

    def _added(self, x: Array, size: Array, u: float) -> Array:
        return np.where(np.isfinite(x), super()._added(x, size, u), x)


def mutant_sigma(case: Case, mistake: Mistake, tier: Tier, mutant: dict[str, Array]) -> dict[str, Float[Array, "B T"]]:
    """Rounding error of a model that makes the mistake, by Monte-Carlo arithmetic;
    at least one rounding of the output.
    """
    model = mistake.model.of(case)
    model.arithmetic = FiniteNoise(tier, np.random.Generator(np.random.SFC64(case.seed)))
    squares = {name: np.zeros(case.is_real.shape) for name in mutant}
    with np.errstate(all="ignore"):
        for _ in range(SAMPLES):
            sample = model.run(case.token_ids, case.is_real, case.cuts)
            for name in squares:
                squares[name] += np.square(rms_error(case, name, _residual(sample[name], mutant[name])))
        rounding = {
            name: rms_error(case, name, value) * tier.storage / math.sqrt(3.0) for name, value in mutant.items()
        }
    return {name: np.maximum(np.sqrt(total / SAMPLES), rounding[name]) for name, total in squares.items()}


def _can_explain(case: Case, mistake: Mistake, first: Comparison | None) -> bool:
    """True if the mistake can change the first intermediate that differs: it changes none before its own first."""
    order = list(truth(case).values)
    if mistake.first == NO_INTERMEDIATE or first is None or (mistake.is_of_adapters and case.lora is None):
        return False
    return mistake.first in order and order.index(mistake.first) <= order.index(first.name)


def _below_noise(
    case: Case, operands: tuple[Operand, Operand], mistakes: Sequence[Mistake]
) -> list[tuple[str, Amplitude]]:
    """Return the mistakes that an operand makes although every logit is within its budget."""
    amplitudes: list[tuple[str, Amplitude]] = []
    for operand in operands:
        if operand.tier is not None and not case.cuts and "logits" in operand.values:
            error = operand.values["logits"].astype(np.float64) - truth(case).values["logits"]
            visible = [mistake for mistake in mistakes if mistake.first != NO_INTERMEDIATE]
            projected = project([case], operand.tier, [error], visible)
            amplitudes += [(operand.name, amplitude) for amplitude in projected if amplitude.explains]
    return amplitudes
