"""Arrays with random rounding errors: the Monte-Carlo arithmetic of the kit for any formula of NumPy operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

SIMULATED = 2.0**-24
"""Unit roundoff of the simulation: that of float32, whose errors float64 can represent. Errors are proportional to the
unit."""
EXACT = (np.maximum, np.minimum, np.negative, np.absolute)
"""Operations that never round."""
_generator: ContextVar[np.random.Generator] = ContextVar("generator of the rounding errors")


@contextmanager
def errors_from(generator: np.random.Generator) -> Iterator[None]:
    """Inside, `Noisy` arrays draw their rounding errors from this generator."""
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


class Noisy(np.ndarray):
    """float64 array with a random rounding error of `SIMULATED` in the result of every operation; used inside
    `errors_from`."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Run the operation on plain arrays and add the error; a matrix product gets that of adding its terms in turn,
        as in `montecarlo`."""
        plain = [np.asarray(x) for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        size = _deviation(ufunc, method, plain)  # before the result may overwrite its inputs
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc in EXACT or not isinstance(result, np.ndarray | np.floating) or result.dtype.kind != "f":
            return result
        size = np.abs(result) / np.sqrt(3.0) if size is None else size
        size = np.where(np.isfinite(result), size, 0.0)
        noise = (_generator.get().random(result.shape) - 0.5) * (2.0 * np.sqrt(3.0) * SIMULATED) * size
        if out is None:
            return (result + noise).view(Noisy) if isinstance(result, np.ndarray) else result + noise
        result += noise
        return out[0]

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Let the result of `np.where`, which rounds nothing, keep the class."""
        result = super().__array_function__(function, types, arguments, options)
        return result.view(Noisy) if function is np.where and result.dtype.kind == "f" else result


def _deviation(ufunc: np.ufunc, method: str, inputs: list[np.ndarray]) -> np.ndarray | None:
    """Standard deviation of the error of a matrix product, in units of roundoff; None for other operations."""
    if ufunc is not np.matmul or method != "__call__":
        return None
    a, b = inputs
    terms = a.shape[-1]
    return np.sqrt((np.square(a) @ np.square(b) * (terms / 2) + np.square(a @ b) * (terms / 3)) / 3.0)
