"""The budget of a kernel's error: that of tests/backend/backend_cases.py, on one operation.

A row's error may be 4 times the largest one of the same formula, evaluated by NumPy in the accumulation dtype with the
roundings of the policy, and one rounding of the result. A small problem may be lucky: the largest error is taken over four
problems of the same shape. float64 has no wider formula: its error is that of float32 times 2**-29.
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
    """Run the problem and hold it to its budget; returns what the kernel gave."""
    got = problem.run(device)
    exact = problem.formula(np.dtype(np.float64), same)
    assert got.shape == exact.shape
    assert np.isfinite(got.astype(np.float64)).all()
    error = rms(got.astype(np.float64) - exact)
    arithmetic = max(_arithmetic(replace(problem, seed=problem.seed + i)) for i in range(4))
    allowed = 4.0 * arithmetic + UNIT[problem.returned] * rms(exact) + problem.slack()
    worst = float(np.max(error / np.maximum(allowed, 1e-300), initial=0.0))
    assert worst <= 1.0, f"{worst:.2f} times the budget"
    return got


def _arithmetic(problem: Problem) -> float:
    """The largest error of a row when NumPy does the same in the accumulation dtype."""
    single = problem.dtype == "float64"
    a: Any = np.dtype(np.float32) if single else accumulated(problem.dtype)
    rounds = isinstance(problem, Attention) and problem.kind == "flash"
    exact = problem.formula(np.dtype(np.float64), same)
    near = problem.formula(a, lambda x: cast(x, stored(problem.dtype)).astype(a) if rounds else x)
    near = near if single else cast(near, stored(problem.returned))
    return float(np.max(rms(near.astype(np.float64) - exact), initial=0.0)) * (2.0**-29 if single else 1.0)
