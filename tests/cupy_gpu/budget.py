"""Error budget of a kernel: the kit's Monte-Carlo arithmetic on the formula of one operation (NUM-8, NUM-9).

The formula runs in float64 with a random rounding error in the result of every operation, as large as that of the
accumulation dtype; what the kernel rounds to the compute dtype gets the error of that dtype. The spread of the results
is sigma, and the error of a row may be at most `LIMIT` times its sigma.
"""

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from noisy_arrays import SIMULATED, Noisy, errors_from
from problem import Numbers, Problem, same

from bloomref.conformance.oracle.budgets import LIMIT
from bloomref.conformance.oracle.precision import TIERS, Tier

SAMPLES = 16


def check(problem: Problem, device: EmulatedDevice) -> Numbers:
    """Run the problem, assert that its error is within the budget, and return the kernel's result."""
    result = problem.run(device)
    exact = problem.formula(np.dtype(np.float64), same)
    assert result.shape == exact.shape
    assert np.isfinite(result.astype(np.float64)).all()
    if not exact.size:
        return result
    error, allowed = rms(result.astype(np.float64) - exact), sigma(problem, exact)
    z = float(np.max(error / np.maximum(allowed, 1e-300), initial=0.0))
    assert z <= LIMIT, f"the error is {z:.3g} times what rounding explains (limit {LIMIT:g})"
    return result


def sigma(problem: Problem, exact: Numbers) -> Numbers:
    """Root mean square error of each row that rounding explains."""
    squares = [np.square(rms(sample - exact)) for sample in _samples(problem)]
    variance = (np.sum(squares, axis=0) + 2 * np.median(np.mean(squares, axis=0))) / (SAMPLES + 2)
    returned = TIERS[problem.returned]
    return np.maximum(np.sqrt(variance), rms(_size(exact, returned)) * returned.storage / np.sqrt(3.0))


def _samples(problem: Problem) -> Iterator[Numbers]:
    """Results of the formula with random rounding errors."""
    tier, returned, rng = TIERS[problem.dtype], TIERS[problem.returned], np.random.default_rng(problem.seed)
    ratio = tier.accumulation / SIMULATED
    noisy: Any = copy(problem)
    vars(noisy)["inputs"] = tuple(x if x.dtype.kind in "iub" else _noisy(x) for x in problem.inputs)

    def stored(x: Numbers, unit: Tier = tier) -> Numbers:
        error = (2.0 * rng.random(x.shape) - 1.0) * unit.storage * _size(np.asarray(x), unit)
        return (np.asarray(x) + error / ratio).view(Noisy)

    exact = problem.formula(np.dtype(np.float64), same)
    for _ in range(SAMPLES):
        with errors_from(rng):
            sample = np.asarray(
                stored(noisy.formula(np.dtype(np.float64), stored if problem.rounds else same), returned)
            )
        yield exact + (sample - exact) * ratio


def _noisy(x: Numbers) -> Numbers:
    return x.astype(np.float64).view(Noisy)


def _size(x: Numbers, tier: Tier) -> Numbers:
    """Magnitudes that a rounding error is proportional to."""
    return np.maximum(np.abs(x), tier.smallest)


def rms(x: Numbers) -> Numbers:
    """Root mean square over the last axis."""
    return np.sqrt(np.mean(np.square(x), axis=-1))
