"""Error budget of a kernel: that of tests/support/backend_cases.py, for one operation.

The error of a row may be 4 times the largest error of the same formula, evaluated by NumPy in the accumulation dtype
with the roundings of the policy, plus one rounding of the result. A small problem may have a small error by chance, so
the largest error is taken over four problems of the same shape. float64 has no wider dtype: its error is that of
float32 times 2**-29.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from attention_problem import Attention
from backend_cases import UNIT, rms
from emulated_device import EmulatedDevice
from problem import Numbers, Problem, accumulated, same, stored

from bloomref.dtypes import cast


def check(problem: Problem, device: EmulatedDevice) -> Numbers:
    """Run the problem, assert that its error is within the budget, and return the kernel's result."""
    result = problem.run(device)
    exact = problem.formula(np.dtype(np.float64), same)
    assert result.shape == exact.shape
    assert np.isfinite(result.astype(np.float64)).all()
    error = rms(result.astype(np.float64) - exact)
    arithmetic = max(_arithmetic(replace(problem, seed=problem.seed + i)) for i in range(4))
    allowed = 4.0 * arithmetic + UNIT[problem.returned] * rms(exact) + problem.slack()
    worst = float(np.max(error / np.maximum(allowed, 1e-300), initial=0.0))
    assert worst <= 1.0, f"{worst:.2f} times the budget"
    return result


def _arithmetic(problem: Problem) -> float:
    """Return the largest error of a row when NumPy evaluates the formula in the accumulation dtype."""
    single = problem.dtype == "float64"
    a: Any = np.dtype(np.float32) if single else accumulated(problem.dtype)
    rounds = isinstance(problem, Attention) and problem.kind == "flash"
    exact = problem.formula(np.dtype(np.float64), same)
    near = problem.formula(a, lambda x: cast(x, stored(problem.dtype)).astype(a) if rounds else x)
    near = near if single else cast(near, stored(problem.returned))
    return float(np.max(rms(near.astype(np.float64) - exact), initial=0.0)) * (2.0**-29 if single else 1.0)
