"""Matched filter: detects known mistakes whose effect is below the rounding noise of a single case.

Let d be the change that a mistake causes, e the error of an implementation, and sigma the noise of each position. The
amplitude is <e, d> / <d, d>, with inner products weighted by 1 / sigma^2. It is 1 if the implementation makes the
mistake, and 0 if not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle import montecarlo
from bloomref.conformance.oracle.budgets import LIMIT, budget, worst_position
from bloomref.conformance.oracle.intermediates import OVER_HEADS, OVER_KEYS, observable, per_position
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Float

MIN_SIGNIFICANCE = 5.0
"""Smallest significant amplitude, in standard errors."""
MAX_DEVIATION = 0.2
"""Largest distance from 1 of the amplitude of a mistake that the implementation makes."""


class Known(Protocol):
    """A known mistake: a name, and the instrumented model that makes it."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> type[InstrumentedModel]: ...


@dataclass(frozen=True)
class Amplitude:
    """Amplitude of a mistake in the errors of several cases.

    Args:
        residual: largest Z of the errors after subtracting the mistake.
    """

    name: str
    value: float
    standard_error: float
    residual: float

    @property
    def explains(self) -> bool:
        """True if the mistake explains the error: its amplitude is significant and about 1, and the rest is noise."""
        clear = abs(self.value) > MIN_SIGNIFICANCE * self.standard_error
        return clear and abs(self.value - 1.0) < MAX_DEVIATION and self.residual <= LIMIT


def project(
    cases: Sequence[Case], tier: Tier, errors: Sequence[Array], mistakes: Sequence[Known], name: str = "logits"
) -> list[Amplitude]:
    """Return the amplitude of every mistake that changes the intermediate in these cases; those that explain the errors
    come first.

    Args:
        errors: result of an implementation minus the truth, for each case.
        name: the intermediate.
    """
    fields = [_Field(case, tier, name, error) for case, error in zip(cases, errors, strict=True)]
    amplitudes = [amplitude for mistake in mistakes if (amplitude := _pooled(fields, mistake)) is not None]
    return sorted(amplitudes, key=lambda amplitude: (not amplitude.explains, amplitude.residual))


class _Field:
    """Error, noise samples and weights of one case; 0 at positions that cannot be judged."""

    def __init__(self, case: Case, tier: Tier, name: str, error: Array) -> None:
        limits = budget(case, tier)
        self.case, self.name, self.sigma = case, name, limits.sigma[name]
        self.mask = observable(name, error, case.is_real) & _spread(name, limits.graded[name])
        self.error = self._masked(error)
        samples = montecarlo.errors(case, tier, montecarlo.affordable(case))
        self.noise = [self._masked(sample[name]) for _, sample in samples]
        self.weight = 1.0 / np.square(_spread(name, np.where(self.sigma > 0.0, self.sigma, np.inf)))

    def _masked(self, value: Array) -> Array:
        return np.where(self.mask & np.isfinite(value), value, 0.0)

    def direction(self, mistake: Known) -> Float[Array, "*N"]:
        case = self.case
        with np.errstate(all="ignore"):
            results = mistake.model.of(case).run(case.token_ids, case.is_real)
        wrong, right = results.get(self.name), truth(case).values[self.name]
        if wrong is None or wrong.shape != right.shape:
            return np.zeros_like(right)
        with np.errstate(invalid="ignore"):
            return self._masked(wrong - right)

    def along(self, error: Array, direction: Array) -> float:
        return float((error * direction * self.weight).sum())

    def residual(self, error: Array) -> float:
        return worst_position(per_position(self.name, error, self.case.is_real), self.sigma, self.case.is_real)[0]


def _spread(name: str, position: Array) -> Array:
    """Give an array (B, T) the axes of the intermediate."""
    return position[:, None, :, None] if name.endswith(OVER_HEADS + OVER_KEYS) else position[:, :, None]


def _pooled(fields: Sequence[_Field], mistake: Known) -> Amplitude | None:
    directions = [field.direction(mistake) for field in fields]
    amplitudes, weights = [], []
    for field, direction in zip(fields, directions, strict=True):
        power = field.along(direction, direction)
        if not 0.0 < power < np.inf:
            continue
        noise = np.mean([(field.along(sample, direction) / power) ** 2 for sample in field.noise])
        amplitudes.append(field.along(field.error, direction) / power)
        weights.append(1.0 / noise)
    if not weights:
        return None
    value = float(np.average(amplitudes, weights=weights))
    residual = max(f.residual(f.error - value * d) for f, d in zip(fields, directions, strict=True))
    return Amplitude(mistake.name, value, float(np.sum(weights) ** -0.5), residual)
