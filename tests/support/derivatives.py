"""Derivatives by differences, and numbers to take them at: what tests of gradients compare with."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def directional(function: Callable[[Array], Array], x: Array, direction: Array) -> Array:
    """The derivative of an analytic function along a direction."""
    step = 1e-30
    return inspect.unwrap(function)(x + 1j * step * direction).imag / step


def derivative(function: Callable[[float], Any], step: float = 3e-4) -> Any:
    """d function / d h at 0, with the errors of the second and the fourth order taken out."""
    near, far = (function(n * step) - function(-n * step) for n in (1, 2))
    further = function(3 * step) - function(-3 * step)
    return (45 * near - 9 * far + further) / (60 * step)
