"""Rounding budgets: the error allowed at each position, computed for each case and dtype, never chosen.

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
from bloomref.conformance.oracle.truth import CACHED_CASES, truth
from bloomref.errors import invalid, represented
from bloomref.shapes import Array, Bool, Float

__all__ = ["LIMIT", "TIERS", "Judgement", "Tier", "judge", "sigma", "tier_of"]

LIMIT = 5.0
"""Largest Z that passes."""
MAX_NOISE = 0.05
"""Largest noise-to-signal ratio of a position that is judged: above it, sigma does not describe the error."""
MEDIAN_WEIGHT = 2
"""Weight of the median variance over all positions, in samples."""
MIN_JUDGED = 0.5
"""Smallest share of the real positions that must be judged; below it, an intermediate that does not fail is
inconclusive."""
MAX_UPSTREAM_NOISE = 0.25
"""Noise-to-signal ratio above which everything computed from a position is excluded, too."""
MAX_SCORE_NOISE = 0.5
"""Noise of a head's scores above which softmax amplifies it; everything computed from such a position is excluded."""


@dataclass(frozen=True)
class Judgement:
    """Verdict on one tensor.

    Args:
        verdict: "pass", "fail" or "inconclusive".
        z: largest rms(error) / sigma over the judged positions; infinite if a number is not finite.
        where: (batch row, position) of the largest; None for a tensor that is judged as a whole, such as a gradient.
        explanation: one line: the error, the budget, and the reason.
    """

    name: str
    verdict: str
    z: float
    where: tuple[int, int] | None
    explanation: str


@dataclass(frozen=True, eq=False)
class Budget:
    """The effect of rounding on a case.

    Args:
        sigma: intermediate -> rms error that rounding explains, at each position.
        graded: intermediate -> True at positions that can be judged: the noise is small compared to the signal, there
            and at all positions that it was computed from.
    """

    sigma: dict[str, Float[Array, "B T"]]
    graded: dict[str, Bool[Array, "B T"]]


def sigma(case: Case, tier: Tier, names: Iterable[str] | None = None) -> dict[str, Float[Array, "B T"]]:
    """Return the rms error that rounding explains at each position, by intermediate; 0 at padded positions.

    It is the larger value of both ALiBi anchors, since either is right.

    Args:
        names: intermediates (clause MOD-8); None: all.
    """
    by_name = budget(case, tier).sigma
    return dict(by_name) if names is None else {name: by_name[name] for name in names}


@lru_cache(CACHED_CASES)
def budget(case: Case, tier: Tier) -> Budget:
    """Compute the budget of a case by Monte-Carlo arithmetic. Deterministic: the token ids are the seed."""
    spread, head_noise = _sampled(case, tier)
    graded = _graded(case, spread, head_noise)
    smooth = {name: smoothed(value, graded[name], montecarlo.affordable(case)) for name, value in spread.items()}
    return Budget({name: np.maximum(value, _one_rounding(case, tier, name)) for name, value in smooth.items()}, graded)


def smoothed(spread: Float[Array, "B T"], graded: Bool[Array, "B T"], samples: int) -> Float[Array, "B T"]:
    """Add the median variance of all positions as `MEDIAN_WEIGHT` samples: a few samples may all be small by chance."""
    median = np.median(np.square(spread[graded])) if graded.any() else 0.0
    variance = (samples * np.square(spread) + MEDIAN_WEIGHT * median) / (samples + MEDIAN_WEIGHT)
    return np.sqrt(np.where(spread > 0.0, variance, 0.0))


def _sampled(case: Case, tier: Tier) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the rms error by name and position, and for scores that of the noisiest head."""
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
    """Error of rounding the tensor itself once, which may happen when it is returned."""
    u = tier.scores if name.endswith("scores") else tier.storage
    return _signal(case, name) * (u / np.sqrt(3.0))


def _signal(case: Case, name: str) -> Float[Array, "B T"]:
    return per_position(name, truth(case).values[name], case.is_real)


def _contrast(case: Case, name: str) -> Float[Array, "B T"]:
    """Signal of a hidden state to the layer norm that reads it: its standard deviation over D, unless that is 0."""
    value = truth(case).values[name]
    spread = per_position(name, value - value.mean(axis=-1, keepdims=True), case.is_real)
    return np.where(spread > 0.0, spread, _signal(case, name))


def _graded(case: Case, sigma: Mapping[str, Array], head_noise: Mapping[str, Array]) -> dict[str, Bool[Array, "B T"]]:
    """Return where each intermediate can be judged. A position that is too noisy excludes everything computed from
    it."""
    graded, usable = {}, case.is_real
    for name, allowed in sigma.items():
        signal = _signal(case, name)
        if name in head_noise:
            usable = usable & (head_noise[name] <= MAX_SCORE_NOISE)
        elif name.endswith(("norm", "block")):
            read = _contrast(case, name) if name.endswith("block") else signal
            quiet = usable & (allowed <= MAX_UPSTREAM_NOISE * read)
            usable = usable & np.logical_and.accumulate(quiet | ~case.is_real, axis=1)
        graded[name] = usable & (allowed <= MAX_NOISE * signal)
    return graded


def judge(case: Case, tier: Tier, outputs: Mapping[str, Array]) -> list[Judgement]:
    """Judge the outputs of an implementation against the truth, in the order of computation.

    Args:
        outputs: named intermediates (clause MOD-8): arrays of any floating dtype, in the reference's shapes.

    Raises:
        InvalidInput: for a name that is not an intermediate.
    """
    exact = truth(case)
    for name in outputs:
        if name not in exact.values:
            raise invalid("outputs", f"names of intermediates: {', '.join(exact.values)}", represented(name))
    return [_judge(case, tier, name, outputs[name]) for name in exact.values if name in outputs]


def _judge(case: Case, tier: Tier, name: str, output: Array) -> Judgement:
    expected = truth(case).values[name]
    problem = _form(output, expected)
    if problem:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: {problem}")
    too_large = next((n for n, size in truth(case).reach.items() if size > tier.largest), None)
    if too_large is not None:
        reason = f"{too_large} reaches {truth(case).reach[too_large]:.3g}, which {tier.where} cannot represent"
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: {reason}")
    with np.errstate(all="ignore"):
        error = np.asarray(output, np.float64) - expected
    bad = observable(name, error, case.is_real) & ~np.isfinite(error)
    if bad.any():
        return _not_finite(name, bad)
    return _measured(case, tier, name, error)


def _form(output: Array, expected: Array) -> str:
    """Describe a wrong shape or dtype; the dtypes of ml_dtypes have the kind V."""
    if output.shape != expected.shape:
        return f"expected shape {expected.shape}, got {output.shape}"
    if output.dtype.kind not in "fV":
        return f"expected floating numbers, got dtype {output.dtype}"
    return ""


def _not_finite(name: str, bad: Array) -> Judgement:
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    where = (index[0], index[1 if bad.ndim == 3 else 2])
    return Judgement(name, "fail", np.inf, where, f"{name} at {where}: not finite, where the truth is")


def worst_position(
    rms: Float[Array, "B T"], sigma: Float[Array, "B T"], judged: Bool[Array, "B T"]
) -> tuple[float, tuple[int, int]]:
    """Return the largest Z = rms / sigma over the judged positions, and its (row, position); 0 at (0, 0) if there is
    none.

    Args:
        rms: root mean square error of each position.
        sigma: rms error that rounding explains; an error where it is 0 has an infinite Z.
    """
    with np.errstate(all="ignore"):
        z = np.where(judged & (rms > 0.0), rms / sigma, 0.0)
    if not z.size:
        return 0.0, (0, 0)
    row, position = np.unravel_index(z.argmax(), z.shape)
    return float(z[row, position]), (int(row), int(position))


def _measured(case: Case, tier: Tier, name: str, error: Array) -> Judgement:
    if not case.is_real.any():
        return Judgement(name, "pass", 0.0, (0, 0), f"{name}: there is no real position")
    limits = budget(case, tier)
    allowed, graded = limits.sigma[name], limits.graded[name]
    with np.errstate(all="ignore"):
        rms = per_position(name, error, case.is_real)
    z, where = worst_position(rms, allowed, graded)
    share = graded.sum() / case.is_real.sum()
    if z <= LIMIT and share < MIN_JUDGED:
        return Judgement(name, "inconclusive", z, where, _too_noisy(tier, name, share))
    text = (
        f"{name} at {where}: rms error {rms[where]:.2g}, {z:.2g} times the {allowed[where]:.2g} that rounding explains"
        f" ({tier.where}; limit {LIMIT:g} times)"
    )
    return Judgement(name, "pass" if z <= LIMIT else "fail", z, where, text)


def _too_noisy(tier: Tier, name: str, share: float) -> str:
    reason = f"at the others, rounding alone ({tier.where}) may change it by more than {MAX_NOISE:.0%}"
    return f"{name}: only {share:.0%} of the positions can be judged; {reason}"
