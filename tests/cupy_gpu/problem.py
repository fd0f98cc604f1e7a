"""What a small problem for a kernel is: what it is given, how it is launched, and what it computes, written with the reference's
operations.

`run` gives what the kernel left; `formula(a)` the same values computed in the dtype a on the same rounded inputs. Inputs hide
nothing: no bias is zero, no weight is one.
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
    """The NumPy dtype of T."""
    return dtype_policy(dtype).compute_dtype


def accumulated(dtype: str) -> Any:
    """The NumPy dtype of A."""
    return accumulation_dtype(stored(dtype))


class Draws:
    """Random arrays of one problem, drawn in the order in which they are asked for."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype, self._random = dtype, np.random.default_rng(seed)

    def hidden(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Numbers:
        """Numbers of T."""
        return cast(self._random.standard_normal(shape) * scale + mean, stored(self.dtype))

    def vector(self, size: int, mean: float = 0.0) -> Numbers:
        """Numbers of T kept in A: biases and gains."""
        return self.hidden(size, scale=0.3, mean=mean).astype(accumulated(self.dtype))

    def inner(self, *shape: int) -> Numbers:
        """Numbers of A."""
        return self._random.standard_normal(shape).astype(accumulated(self.dtype))

    def matrix(self, outputs: int, width: int) -> Numbers:
        return self.hidden(outputs, width, scale=1.0 / math.sqrt(width))

    def padding(self, kind: str, batch: int, time: int) -> Numbers:
        return mask(self._random, kind, batch, time)


def padded(matrix: Numbers) -> Numbers:
    """A matrix as the kernels want it: rows of whole 16 bytes, zeros behind the width."""
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
    dtype: str
    seed: int = 0

    @property
    def returned(self) -> str:
        """The dtype to which results are rounded."""
        return self.dtype

    @cached_property
    def draws(self) -> Draws:
        return Draws(self.dtype, self.seed)

    @abstractmethod
    def run(self, device: EmulatedDevice) -> Numbers: ...

    @abstractmethod
    def formula(self, a: Any, rounding: Rounding) -> Numbers:
        """`rounding`: for a kernel that rounds inputs of products to T, that rounding; nothing, for the truth."""

    def slack(self) -> Numbers | float:
        """What a row's error may be besides, where a rounding inside the kernel can go either way."""
        return 0.0
