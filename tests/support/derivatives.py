"""Derivatives by differences, and random numbers to take them at: the expected values in tests of gradients."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def directional(function: Callable[[Array], Array], x: Array, direction: Array) -> Array:
    """Derivative of an analytic function along a direction, by a complex step."""
    step = 1e-30
    return inspect.unwrap(function)(x + 1j * step * direction).imag / step


def derivative(function: Callable[[float], Any], step: float = 3e-4) -> Any:
    """d function / d h at 0, by central differences of sixth order."""
    near, far = (function(n * step) - function(-n * step) for n in (1, 2))
    further = function(3 * step) - function(-3 * step)
    return (45 * near - 9 * far + further) / (60 * step)


def is_derivative(
    value: float, function: Callable[[float], Any], scale: float, relative: float, noise: float, step: float = 3e-4
) -> bool:
    """True if `value` is d function / d h at 0,
    within `relative * scale` and the rounding error of the differences, `noise / step`.

    An eighth of the step is tried, too. It leaves 8**-6 = 4e-6 of the truncation error, which is large where a layer
    norm divides by a small deviation. A wrong value differs from the derivative with either step.
    """
    return any(abs(value - derivative(function, h)) <= relative * scale + noise / h for h in (step, step / 8))
