"""Errors below the noise: how much of an implementation's error lies in the direction of each known mistake?

A matched filter. With d what a mistake changes, e an error and sigma the noise of each position, the amplitude is
<e, d> / <d, d>, each product weighted with 1 / sigma^2: 1 for an implementation that makes the mistake, 0 for one that does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle import montecarlo
from bloomref.conformance.oracle.budgets import LIMIT, budget
from bloomref.conformance.oracle.intermediates import OVER_HEADS, OVER_KEYS, observable, per_position
from bloomref.conformance.oracle.precision import Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Float

CLEAR = 5.0
"""An amplitude of so many standard errors is there."""
NEAR_ONE = 0.2
"""How far from 1 the amplitude of a mistake may be that was made."""


class Known(Protocol):
    """A known mistake: a name, and the instrumented model that makes it."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> type[InstrumentedModel]: ...


@dataclass(frozen=True)
class Amplitude:
    """How much of a mistake is in an error, pooled over the cases.

    Args:
        residual: the worst Z that is left without it.
    """

    name: str
    value: float
    standard_error: float
    residual: float

    @property
    def found(self) -> bool:
        """The mistake explains the error: its amplitude is clear and about 1, and what is left is noise."""
        clear = abs(self.value) > CLEAR * self.standard_error
        return clear and abs(self.value - 1.0) < NEAR_ONE and self.residual <= LIMIT


def project(
    cases: Sequence[Case], tier: Tier, errors: Sequence[Array], mistakes: Sequence[Known], name: str = "logits"
) -> list[Amplitude]:
    """The amplitude of every mistake that changes something in these cases; those that explain the errors first.

    Args:
        errors: for each case, what an implementation says minus the truth, of the intermediate `name`.
    """
    fields = [_Field(case, tier, name, error) for case, error in zip(cases, errors, strict=True)]
    found = [amplitude for mistake in mistakes if (amplitude := _pooled(fields, mistake)) is not None]
    return sorted(found, key=lambda amplitude: (not amplitude.found, amplitude.residual))


class _Field:
    """One case: the error, samples of noise, and the weights of the numbers; 0 where nothing can be judged."""

    def __init__(self, case: Case, tier: Tier, name: str, error: Array) -> None:
        found = budget(case, tier)
        self.case, self.name, self.sigma = case, name, found.sigma[name]
        self.mask = observable(name, error, case.is_real) & _spread(name, found.graded[name])
        self.error = self._masked(error)
        samples = montecarlo.errors(case, tier, montecarlo.affordable(case))
        self.noise = [self._masked(sample[name]) for _, sample in samples]
        self.weight = 1.0 / np.square(_spread(name, np.where(self.sigma > 0.0, self.sigma, np.inf)))

    def _masked(self, value: Array) -> Array:
        return np.where(self.mask & np.isfinite(value), value, 0.0)

    def direction(self, mistake: Known) -> Float[Array, "*N"]:
        case = self.case
        with np.errstate(all="ignore"):
            seen = mistake.model.of(case).run(case.token_ids, case.is_real)
        wrong, right = seen.get(self.name), truth(case).values[self.name]
        if wrong is None or wrong.shape != right.shape:
            return np.zeros_like(right)
        with np.errstate(invalid="ignore"):
            return self._masked(wrong - right)

    def along(self, error: Array, direction: Array) -> float:
        return float((error * direction * self.weight).sum())

    def residual(self, error: Array) -> float:
        far = per_position(self.name, error, self.case.is_real)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(far > 0.0, far / self.sigma, 0.0).max(initial=0.0))


def _spread(name: str, position: Array) -> Array:
    """(B, T) with the axes of the intermediate."""
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
