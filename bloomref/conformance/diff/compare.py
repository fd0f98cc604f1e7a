"""Where do two implementations part, by how much, and which known mistake explains it?

Both are run on one case; their intermediates are compared in the order of computation, each against the error that rounding
explains (NUM-8). Then every mistake of the catalogue is made in float64: the one that a side makes leaves nothing but rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.diff.operands import Side
from bloomref.conformance.mistakes import MISTAKES, NO_INTERMEDIATE, Mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import GRADABLE, LIMIT, budget
from bloomref.conformance.oracle.intermediates import observable, per_position
from bloomref.conformance.oracle.matched_filter import Amplitude, project
from bloomref.conformance.oracle.montecarlo import SAMPLES, Noise
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.errors import invalid
from bloomref.shapes import Array, Bool, Float

CLOSE = 5
"""So many of the mistakes that come closest get a budget of their own: noise in a mistaken model has another size."""
PARTLY = 0.9
"""The share of a difference that a mistake must explain to be mentioned though it leaves more than rounding."""


@dataclass(frozen=True)
class Step:
    """One intermediate of both sides.

    Args:
        z: the worst difference of a position, in units of what rounding explains in both.
        relative: root mean square of the difference over that of the truth.
        where: (batch row, position) of the worst.
        judged: whether rounding leaves anything to be said.
    """

    name: str
    z: float
    relative: float
    where: tuple[int, int]
    judged: bool = True

    @property
    def differs(self) -> bool:
        return self.judged and not self.z <= LIMIT


@dataclass(frozen=True)
class Explanation:
    """A mistake that a side may make.

    Args:
        z: the worst that is left when the side is compared with a model that makes it.
        share: how much of the difference it explains, by root mean square over all intermediates.
    """

    mistake: Mistake
    side: str
    z: float
    share: float

    @property
    def matches(self) -> bool:
        return self.z <= LIMIT


@dataclass(frozen=True, eq=False)
class Difference:
    """What came out."""

    case: Case
    sides: tuple[Side, Side]
    steps: list[Step]
    explanations: list[Explanation] = field(default_factory=list)
    below_noise: list[tuple[str, Amplitude]] = field(default_factory=list)

    @property
    def first(self) -> Step | None:
        """The first intermediate that leaves its budget."""
        return next((step for step in self.steps if step.differs), None)

    @property
    def differ(self) -> bool:
        return self.first is not None


def diff(case: Case, a: Side, b: Side, mistakes: Sequence[Mistake] = MISTAKES) -> Difference:
    """Compare both sides, and explain what is found.

    Raises:
        InvalidInput: they have no intermediate in common, or of different shapes.
    """
    steps = [_step(case, name, a, b) for name in common(case, a, b)]
    found = Difference(case, (a, b), steps)
    if not found.differ:
        return Difference(case, (a, b), steps, below_noise=_below_noise(case, (a, b), mistakes))
    tried = [mistake for mistake in mistakes if _may_begin(case, mistake, found.first)]
    explanations = [e for side in (a, b) if side.tier and _is_off(case, side) for e in explain(case, side, tried)]
    return Difference(case, (a, b), steps, sorted(explanations, key=lambda e: (not e.matches, -e.share)))


def common(case: Case, a: Side, b: Side) -> list[str]:
    """The intermediates that both have, in the order of computation."""
    names = [name for name in truth(case).values if name in a.values and name in b.values]
    if not names:
        raise invalid("sides", "intermediates that both have", f"{sorted(a.values)[:3]} and {sorted(b.values)[:3]}")
    shapes = {name: truth(case).values[name].shape for name in names}
    for side in (a, b):
        wrong = [f"{name} {side.values[name].shape}" for name in names if side.values[name].shape != shapes[name]]
        if wrong:
            raise invalid(side.name, f"{wrong[0].split()[0]} of shape {shapes[wrong[0].split()[0]]}", wrong[0])
    return names


# --- how far apart ----------------------------------------------------------------------------------------------------


def _step(case: Case, name: str, a: Side, b: Side) -> Step:
    with np.errstate(all="ignore"):
        error = a.values[name].astype(np.float64) - b.values[name].astype(np.float64)
    budgets = [budget(case, side.tier) for side in (a, b) if side.tier]
    allowed = np.sqrt(sum((np.square(found.sigma[name]) for found in budgets), np.zeros(case.is_real.shape)))
    return measure(
        case, name, error, allowed, np.logical_and.reduce([case.is_real, *(f.graded[name] for f in budgets)])
    )


def measure(case: Case, name: str, error: Array, allowed: Float[Array, "B T"], graded: Bool[Array, "B T"]) -> Step:
    """An error in units of what is allowed, where that means something; what is not finite is infinitely far."""
    signal = per_position(name, truth(case).values[name], case.is_real)
    far = distance(case, name, error)
    judged = graded & (allowed <= GRADABLE * signal)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(judged & (far > 0.0), far / allowed, 0.0)
    row, column = np.unravel_index(z.argmax(), z.shape) if z.size else (0, 0)
    whole = np.sqrt(np.square(signal).sum())
    relative = float(np.sqrt(np.square(far).sum()) / whole) if whole else 0.0
    return Step(name, float(z.max(initial=0.0)), relative, (int(row), int(column)), bool(judged.any()))


def distance(case: Case, name: str, error: Array) -> Float[Array, "B T"]:
    lost = observable(name, error, case.is_real) & ~np.isfinite(error)
    if not lost.any():
        return per_position(name, np.where(np.isfinite(error), error, 0.0), case.is_real)
    spread = per_position(name, lost.astype(np.float64), case.is_real)
    return np.where(spread > 0.0, np.inf, per_position(name, np.where(np.isfinite(error), error, 0.0), case.is_real))


def _is_off(case: Case, side: Side) -> bool:
    """Whether it leaves its budget around the oracle: of two sides that differ, that is at least one."""
    oracle = Side("oracle", truth(case).values, None)
    return any(_step(case, name, side, oracle).differs for name in common(case, side, oracle))


# --- which mistake ----------------------------------------------------------------------------------------------------


def explain(case: Case, side: Side, mistakes: Sequence[Mistake]) -> list[Explanation]:
    """The mistakes that explain a side, best first: those that leave only rounding, then those that explain most of it."""
    assert side.tier is not None
    allowed = budget(case, side.tier).sigma
    found = [_explanation(case, side, mistake, _outputs(case, mistake), allowed) for mistake in mistakes]
    found.sort(key=lambda e: (not e.matches, -e.share))
    again = [_with_own_noise(case, side, e.mistake) for e in found[:CLOSE] if not e.matches]
    matched = [e for e in found if e.matches]
    rest = sorted(again, key=lambda e: (not e.matches, -e.share))
    return [*matched, *(e for e in rest if e.matches or e.share > PARTLY)]


def _outputs(case: Case, mistake: Mistake) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return mistake.model.of(case).run(case.token_ids, case.is_real, case.cuts)


def _explanation(
    case: Case, side: Side, mistake: Mistake, made: dict[str, Array], allowed: dict[str, Array]
) -> Explanation:
    assert side.tier is not None
    graded, steps, left, whole = budget(case, side.tier).graded, [], 0.0, 0.0
    for name in (name for name in truth(case).values if name in side.values and name in made):
        got = side.values[name].astype(np.float64)
        with np.errstate(all="ignore"):
            rest, error = _residual(got, made[name]), got - truth(case).values[name]
        steps.append(measure(case, name, rest, allowed[name], graded[name]))
        left += _weight(case, name, rest, allowed[name])
        whole += _weight(case, name, error, allowed[name])
    share = 1.0 - np.sqrt(left / whole) if 0.0 < whole < np.inf and np.isfinite(left) else float(left == 0.0)
    z = max((step.z for step in steps if step.judged), default=np.inf)
    return Explanation(mistake, side.name, z, float(share))


def _residual(got: Array, made: Array) -> Array:
    """The difference; where neither is a number they agree."""
    if got.shape != made.shape:
        return np.full(got.shape, np.inf)
    return np.where(~np.isfinite(got) & ~np.isfinite(made), 0.0, got - made)


def _weight(case: Case, name: str, error: Array, allowed: Float[Array, "B T"]) -> float:
    """Mean square of the error in units of the budget, over the positions."""
    far = distance(case, name, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.square(np.where(far > 0.0, far / allowed, 0.0)).sum())


def _with_own_noise(case: Case, side: Side, mistake: Mistake) -> Explanation:
    assert side.tier is not None
    made = _outputs(case, mistake)
    own = mistaken_sigma(case, mistake, side.tier, made)
    allowed = {name: np.maximum(value, own.get(name, 0.0)) for name, value in budget(case, side.tier).sigma.items()}
    return _explanation(case, side, mistake, made, allowed)


class FiniteNoise(Noise):
    """Leaves infinities alone: a mistake may have them where the reference has none."""

    def _added(self, x: Array, size: Array, u: float) -> Array:
        return np.where(np.isfinite(x), super()._added(x, size, u), x)


def mistaken_sigma(case: Case, mistake: Mistake, tier: Tier, made: dict[str, Array]) -> dict[str, Float[Array, "B T"]]:
    """The spread of a model that makes the mistake, by Monte-Carlo arithmetic as for the right one; one rounding at least."""
    lab: InstrumentedModel = mistake.model.of(case)
    lab.arithmetic = FiniteNoise(tier, np.random.Generator(np.random.SFC64(case.seed)))
    squares = {name: np.zeros(case.is_real.shape) for name in made}
    with np.errstate(all="ignore"):
        for _ in range(SAMPLES):
            seen = lab.run(case.token_ids, case.is_real, case.cuts)
            for name in squares:
                squares[name] += np.square(distance(case, name, _residual(seen[name], made[name])))
        rounding = {name: distance(case, name, value) * tier.storage / math.sqrt(3.0) for name, value in made.items()}
    return {name: np.maximum(np.sqrt(total / SAMPLES), rounding[name]) for name, total in squares.items()}


def _may_begin(case: Case, mistake: Mistake, first: Step | None) -> bool:
    """A mistake changes nothing before the intermediate where it first shows."""
    order = list(truth(case).values)
    if mistake.first == NO_INTERMEDIATE or first is None or (mistake.is_of_adapters and case.lora is None):
        return False
    return mistake.first in order and order.index(mistake.first) <= order.index(first.name)


def _below_noise(case: Case, sides: tuple[Side, Side], mistakes: Sequence[Mistake]) -> list[tuple[str, Amplitude]]:
    """Mistakes that a side makes although each number alone is within its budget."""
    found = []
    for side in sides:
        if side.tier is not None and not case.cuts and "logits" in side.values:
            error = side.values["logits"].astype(np.float64) - truth(case).values["logits"]
            known = [mistake for mistake in mistakes if mistake.first != NO_INTERMEDIATE]
            found += [
                (side.name, amplitude) for amplitude in project([case], side.tier, [error], known) if amplitude.found
            ]
    return found
