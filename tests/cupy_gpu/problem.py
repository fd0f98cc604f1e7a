"""`Problem`: a small test problem for a kernel, with its inputs, its launch and its formula.

The formula is written with the reference's operations.

`run` returns the kernel's result, and `formula(a)` the same values computed in the dtype a from the same rounded
inputs. No bias is zero and no LayerNorm weight is one, so that no operation is hidden.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from strategies import mask

from accel.cupy_gpu import launches
from bloomref.dtypes import accumulation_dtype, cast, dtype_policy
from bloomref.reference import ops

Numbers = np.ndarray[Any, Any]
Rounding = Callable[[Numbers], Numbers]
EPSILON = 1e-5


def stored(dtype: str) -> Any:
    """Return the NumPy dtype of T, the compute dtype."""
    return dtype_policy(dtype).compute_dtype


def accumulated(dtype: str) -> Any:
    """Return the NumPy dtype of A, the accumulation dtype."""
    return accumulation_dtype(stored(dtype))


class Draws:
    """Random arrays of one problem, drawn in call order."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype, self._random = dtype, np.random.default_rng(seed)

    def hidden(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Numbers:
        """Return normal numbers of dtype T."""
        return cast(self._random.standard_normal(shape) * scale + mean, stored(self.dtype))

    def vector(self, size: int, mean: float = 0.0) -> Numbers:
        """Return numbers of T stored in A: biases and LayerNorm weights."""
        return self.hidden(size, scale=0.3, mean=mean).astype(accumulated(self.dtype))

    def inner(self, *shape: int) -> Numbers:
        """Return normal numbers of dtype A."""
        return self._random.standard_normal(shape).astype(accumulated(self.dtype))

    def matrix(self, outputs: int, width: int) -> Numbers:
        return self.hidden(outputs, width, scale=1.0 / math.sqrt(width))

    def padding(self, kind: str, batch: int, time: int) -> Numbers:
        return mask(self._random, kind, batch, time)


def padded(matrix: Numbers) -> Numbers:
    """Return a matrix in the layout of the kernels: 16-byte aligned rows, with zeros beyond the width."""
    wide = np.zeros((len(matrix), launches.weight_stride(matrix.shape[1])), matrix.dtype)
    wide[:, : matrix.shape[1]] = matrix
    return wide


def norm(x: Numbers, weight: Numbers, bias: Numbers) -> Numbers:
    return ops.layer_norm(x[None], weight, bias, EPSILON)[0]


def linear(x: Numbers, weight: Numbers, bias: Numbers) -> Numbers:
    return ops.linear(x[None], weight, bias)[0]


def same(x: Numbers) -> Numbers:
    return x


@dataclass(frozen=True)
class Problem(ABC):
    """One call of a kernel.

    Args:
        dtype: Name of T.
        seed: Seed of the inputs.
    """

    dtype: str
    seed: int = 0

    @property
    def returned(self) -> str:
        """Name of the dtype of the result."""
        return self.dtype

    @property
    def rounds(self) -> bool:
        """Return True if the kernel rounds intermediates to T."""
        return False

    @property
    @abstractmethod
    def inputs(self) -> tuple[Numbers, ...]:
        """Random arrays that the kernel reads."""

    @cached_property
    def draws(self) -> Draws:
        return Draws(self.dtype, self.seed)

    @abstractmethod
    def run(self, device: EmulatedDevice) -> Numbers:
        """Launch the kernel and return its result."""

    @abstractmethod
    def formula(self, a: Any, rounding: Rounding) -> Numbers:
        """Evaluate the formula in the dtype `a`. `rounding` is applied to what the kernel rounds to T."""
