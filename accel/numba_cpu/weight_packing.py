"""Pack weights into panels, rounded to the compute dtype, a few panels at a time, from memory or from a mapped file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numba import prange

from accel.numba_cpu.isa import HAS_BF16_DOT, KC, LDA, LINE, NR
from accel.numba_cpu.jit import jit_parallel
from accel.numba_cpu.linear import pack_weight
from accel.numba_cpu.microkernel import widen_element
from accel.numba_cpu.structs import Projection
from bloomref.dtypes import DType, cast
from bloomref.shapes import Array, Float

CHUNK = 1 << 21  # numbers converted at a time: the only copy in addition to the packed weights
Take = Callable[[int, Any], tuple[Array, bool]]
"""`take(elements, dtype)`: space for the next packed weight, and True if the space holds it already."""


@dataclass(frozen=True)
class Format:
    """Storage of the numbers of one compute dtype.

    Args:
        weight: NumPy dtype of a packed weight's elements.
        rows: that of packed rows: the operand elements.
        cache: that of keys and values.
        paired: a step is a pair of elements.
    """

    weight: Any
    rows: Any
    cache: Any
    paired: bool

    def steps(self, k: int) -> int:
        """Steps of a sum over K elements."""
        return (k + 1) // 2 if self.paired else k

    @property
    def width(self) -> int:
        """Elements of one step."""
        return 2 if self.paired else 1

    def row_elements(self, m: int, k: int) -> int:
        """Elements of packed rows (M, K): whole slices."""
        return (self.steps(k) + KC - 1) // KC * LDA * self.width * m

    def panel_elements(self, k: int) -> int:
        """Elements of a panel of a weight (N, K)."""
        return self.steps(k) * NR * self.width


FORMATS = {
    np.dtype(np.float32): Format(np.float32, np.float32, np.float32, False),
    np.dtype(np.float16): Format(np.int16, np.float32, np.int16, False),
    np.dtype(ml_dtypes.bfloat16): Format(np.uint16, np.uint16 if HAS_BF16_DOT else np.float32, np.uint16, HAS_BF16_DOT),
}


def in_memory(elements: int, dtype: Any) -> tuple[Array, bool]:
    """A `Take` of new memory."""
    return aligned((elements,), dtype), False


def pack(
    weight: Float[Array, "N K"], bias: Array | None, compute: DType, variable: DType, take: Take = in_memory
) -> Projection:
    """Pack a weight, rounding each element to the variable dtype and then to the compute dtype (NUM-1).

    Args:
        bias: (N,) in any shape; None: zeros.
    """
    form = FORMATS[compute]
    n, k = weight.shape
    panels, is_filled = take(panels_of(n) * form.panel_elements(k), form.weight)
    if not is_filled:
        _fill(panels, weight, compute, variable)
    padded = np.zeros(up(n), np.float32)
    if bias is not None:
        padded[:n] = vector(bias, compute, variable)
    return Projection(panels, padded, n, form.steps(k))


def _fill(panels: Array, weight: Array, compute: DType, variable: DType) -> None:
    form, (n, k) = FORMATS[compute], weight.shape
    size, step = form.panel_elements(k), max(1, CHUNK // (NR * max(k, 1))) * NR
    for row in range(0, n, step):
        rows = _rounded(weight[row : row + step], compute, variable)
        target = panels[row // NR * size : (row // NR + panels_of(len(rows))) * size]
        pack_bits(np.ascontiguousarray(rows).view(form.weight), form, target)


def pack_bits(rows: Array, form: Format, panels: Array) -> None:
    """Pack contiguous rows (N, K) of `form.weight` elements; an odd last element is paired with zero."""
    if form.paired and rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    unit = np.uint32 if form.paired else form.weight
    pack_weight(rows.view(unit), panels.view(unit))


def vector(values: Array, compute: DType, variable: DType) -> Float[Array, " N"]:
    """A bias or a norm's weight: rounded like every weight, stored as float32."""
    return _rounded(values.reshape(-1), compute, variable).astype(np.float32)


def aligned(shape: tuple[int, ...], dtype: Any, zeroed: bool = False) -> Array:
    """An array that begins at a cache line, so that none of its vectors crosses two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.zeros if zeroed else np.empty)(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def projection_bytes(n: int, k: int, compute: DType) -> int:
    """Bytes of a packed weight (N, K) and its bias."""
    return panel_bytes(n, k, compute) + 4 * up(n)


def panel_bytes(n: int, k: int, compute: DType) -> int:
    """Bytes of the panels of a weight (N, K)."""
    form = FORMATS[compute]
    return panels_of(n) * form.panel_elements(k) * np.dtype(form.weight).itemsize


def panels_of(n: int) -> int:
    """Number of panels that hold n columns."""
    return (n + NR - 1) // NR


def up(columns: int) -> int:
    """Columns rounded up to whole panels."""
    return panels_of(columns) * NR


def widened(values: Array) -> Array:
    """16-bit numbers as float32, exact, on all threads; other arrays as they are.

    The casts of NumPy and ml_dtypes convert one number at a time, on one core.
    """
    if values.dtype not in _BITS:
        return values
    wide = np.empty(values.shape, np.float32)
    _widen(np.ascontiguousarray(values).view(_BITS[values.dtype]).reshape(-1), wide.reshape(-1))
    return wide


_BITS = {np.dtype(np.float16): np.int16, np.dtype(ml_dtypes.bfloat16): np.uint16}


def _rounded(values: Array, compute: DType, variable: DType) -> Array:
    if values.dtype == np.float16 and variable != np.float16:
        values = widened(values)
    return cast(cast(values, variable), compute)


@jit_parallel
def _widen(bits: Array, out: Array) -> None:
    for i in prange(bits.size):
        out[i] = widen_element(bits[i])
