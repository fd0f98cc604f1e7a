"""How far a correct implementation may be from the truth: computed for each case, dtype and position, never chosen.

Z = rms(error) / sigma, where sigma is the spread of the model under Monte-Carlo arithmetic. Clauses: NUM-8 ... NUM-10.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle import montecarlo
from bloomref.conformance.oracle.intermediates import observable, per_head, per_position
from bloomref.conformance.oracle.precision import TIERS, Tier, tier_of
from bloomref.conformance.oracle.truth import REMEMBERED, truth
from bloomref.errors import invalid
from bloomref.shapes import Array, Bool, Float

__all__ = ["LIMIT", "TIERS", "Judgement", "Tier", "judge", "sigma", "tier_of"]

LIMIT = 5.0
"""The largest Z that passes."""
GRADABLE = 0.05
"""Beyond this share of the signal, sigma no longer describes the error: such a position is not judged."""
PRIOR = 2
"""Samples that the median of sigma over the positions counts for."""
ENOUGH = 0.5
"""An intermediate that can be judged at a smaller share of the real positions is inconclusive, unless it fails there."""
WILD = 0.25
"""Beyond this share, nothing that comes of the position is."""
CALM = 0.5
"""Noise of a head's scores beyond which softmax multiplies it: then nothing that comes of the position is judged either."""


@dataclass(frozen=True)
class Judgement:
    """What is to be said of one tensor.

    Args:
        verdict: "pass", "fail" or "inconclusive".
        z: the worst rms(error) / sigma over the positions that can be judged; infinite where a number is not finite.
        where: (batch row, position) of that.
        explanation: one line: how far it is, how far it may be, and why.
    """

    name: str
    verdict: str
    z: float
    where: tuple[int, int]
    explanation: str


@dataclass(frozen=True, eq=False)
class Budget:
    """What rounding may do to a case.

    Args:
        sigma: by intermediate, the error that rounding explains at each position.
        graded: where that holds: noise is small beside the signal, and no position that this one sees is out of hand.
    """

    sigma: dict[str, Float[Array, "B T"]]
    graded: dict[str, Bool[Array, "B T"]]


def sigma(case: Case, tier: Tier, names: Iterable[str] | None = None) -> dict[str, Float[Array, "B T"]]:
    """The error that rounding explains, at each position of each intermediate: root mean square over the position's numbers.

    The larger of both anchorings of ALiBi, since either is right; 0 at padded positions.
    """
    found = budget(case, tier).sigma
    return dict(found) if names is None else {name: found[name] for name in names}


@lru_cache(REMEMBERED)
def budget(case: Case, tier: Tier) -> Budget:
    """From Monte-Carlo arithmetic on the oracle; seeded by the token ids, so always the same."""
    spread, unrest = _sampled(case, tier)
    graded = _graded(case, spread, unrest)
    steady = {name: _steadied(value, graded[name], montecarlo.affordable(case)) for name, value in spread.items()}
    return Budget({name: np.maximum(value, _one_rounding(case, tier, name)) for name, value in steady.items()}, graded)


def _steadied(spread: Float[Array, "B T"], graded: Bool[Array, "B T"], samples: int) -> Float[Array, "B T"]:
    """A few samples may all be small by chance: so the median of all positions counts as `PRIOR` samples more."""
    usual = np.median(np.square(spread[graded])) if graded.any() else 0.0
    mixed = (samples * np.square(spread) + PRIOR * usual) / (samples + PRIOR)
    return np.sqrt(np.where(spread > 0.0, mixed, 0.0))


def _sampled(case: Case, tier: Tier) -> tuple[dict[str, Array], dict[str, Array]]:
    """(root mean square error by name and position; of the scores also that of the worst head)."""
    squares = {name: np.zeros((2, *case.is_real.shape)) for name in truth(case).values}
    heads = {name: np.zeros((2, *case.is_real.shape)) for name in squares if name.endswith("scores")}
    samples = montecarlo.affordable(case)
    for anchoring, errors in montecarlo.errors(case, tier, samples):
        for name, error in errors.items():
            squares[name][anchoring] += np.square(per_position(name, error, case.is_real))
        for name, total in heads.items():
            total[anchoring] += np.square(per_head(name, errors[name], case.is_real).max(axis=1))
    return _root(squares, samples), _root(heads, samples)


def _root(squares: Mapping[str, Array], samples: int) -> dict[str, Array]:
    return {name: np.sqrt(total.max(axis=0) / samples) for name, total in squares.items()}


def _one_rounding(case: Case, tier: Tier, name: str) -> Float[Array, "B T"]:
    """What is looked at may have been rounded once for that."""
    u = tier.scores if name.endswith("scores") else tier.storage
    return _signal(case, name) * (u / np.sqrt(3.0))


def _signal(case: Case, name: str) -> Float[Array, "B T"]:
    return per_position(name, truth(case).values[name], case.is_real)


def _graded(case: Case, sigma: Mapping[str, Array], unrest: Mapping[str, Array]) -> dict[str, Bool[Array, "B T"]]:
    """By name, in the order of computation: what is out of hand at a position spoils all that comes of it."""
    graded, calm = {}, case.is_real
    for name, allowed in sigma.items():
        signal = _signal(case, name)
        if name in unrest:
            calm = calm & (unrest[name] <= CALM)
        elif name.endswith(("norm", "block")):
            tame = calm & (allowed <= WILD * signal)
            calm = calm & np.logical_and.accumulate(tame | ~case.is_real, axis=1)
        graded[name] = calm & (allowed <= GRADABLE * signal)
    return graded


def judge(case: Case, tier: Tier, outputs: Mapping[str, Array]) -> list[Judgement]:
    """One judgement of each output, in the order of computation.

    Args:
        outputs: named intermediates (clause MOD-8): arrays of any floating dtype in the reference's shapes.

    Raises:
        InvalidInput: for a name that no intermediate has.
    """
    exact = truth(case)
    for name in outputs:
        if name not in exact.values:
            raise invalid("outputs", f"names of intermediates: {', '.join(exact.values)}", repr(name))
    return [_judge(case, tier, name, outputs[name]) for name in exact.values if name in outputs]


def _judge(case: Case, tier: Tier, name: str, got: Array) -> Judgement:
    wanted = truth(case).values[name]
    wrong = _form(got, wanted)
    if wrong:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: {wrong}")
    beyond = next((n for n, size in truth(case).reach.items() if size > tier.largest), None)
    if beyond is not None:
        size = truth(case).reach[beyond]
        return Judgement(
            name, "inconclusive", 0.0, (0, 0), f"{name}: {beyond} reaches {size:.3g}, which {tier.where} cannot hold"
        )
    with np.errstate(all="ignore"):
        error = np.asarray(got, np.float64) - wanted
    lost = observable(name, error, case.is_real) & ~np.isfinite(error)
    if lost.any():
        return _not_finite(name, lost)
    return _measured(case, tier, name, error)


def _form(got: Array, wanted: Array) -> str:
    """What is wrong with shape or dtype; ml_dtypes' types have the kind V."""
    if got.shape != wanted.shape:
        return f"expected shape {wanted.shape}, got {got.shape}"
    if got.dtype.kind not in "fV":
        return f"expected floating numbers, got dtype {got.dtype}"
    return ""


def _not_finite(name: str, lost: Array) -> Judgement:
    index = tuple(int(i) for i in np.argwhere(lost)[0])
    where = (index[0], index[1 if lost.ndim == 3 else 2])
    return Judgement(name, "fail", np.inf, where, f"{name} at {where}: not finite, where the truth is")


def _measured(case: Case, tier: Tier, name: str, error: Array) -> Judgement:
    if not case.is_real.any():
        return Judgement(name, "pass", 0.0, (0, 0), f"{name}: there is no real position")
    found = budget(case, tier)
    allowed, graded = found.sigma[name], found.graded[name]
    with np.errstate(all="ignore"):
        far = per_position(name, error, case.is_real)
        z = np.where(graded & (far > 0.0), far / allowed, 0.0)
    row, column = np.unravel_index(z.argmax(), z.shape)
    where, worst = (int(row), int(column)), float(z.max())
    share = graded.sum() / case.is_real.sum()
    if worst <= LIMIT and share < ENOUGH:
        return Judgement(name, "inconclusive", worst, where, _nothing_to_say(tier, name, share))
    text = (
        f"{name} at {where}: rms error {far[where]:.2g}, {worst:.2g} times the {allowed[where]:.2g} that rounding explains"
        f" ({tier.where}; limit {LIMIT:g} times)"
    )
    return Judgement(name, "pass" if worst <= LIMIT else "fail", worst, where, text)


def _nothing_to_say(tier: Tier, name: str, share: float) -> str:
    why = f"elsewhere rounding alone ({tier.where}) may change it by more than {GRADABLE:.0%}, so nothing can be said"
    return f"{name}: can be judged at {share:.0%} of the positions only; {why}"
