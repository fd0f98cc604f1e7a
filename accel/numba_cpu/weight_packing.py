"""Weights on their way into panels: rounded to the compute dtype, a few panels at a time, from memory or from a file's map."""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numba import prange

from accel.numba_cpu.elementwise import half_as_float
from accel.numba_cpu.isa import HAS_BF16_DOT, KC, LDA, LINE, NR
from accel.numba_cpu.jit import jit_parallel
from accel.numba_cpu.linear import pack_weight
from bloomref.dtypes import cast

CHUNK = 1 << 21  # numbers converted at a time: the only copy beside the packed weights


@dataclass(frozen=True)
class Format:
    """How the numbers of one compute dtype are held: element type of weights, of packed rows, steps of one K."""

    weight: Any
    rows: Any
    cache: Any
    paired: bool

    def steps(self, k: int) -> int:
        return (k + 1) // 2 if self.paired else k

    @property
    def width(self) -> int:
        """Elements of one step."""
        return 2 if self.paired else 1

    def row_elements(self, m: int, k: int) -> int:
        """Elements of m rows (M, K) as a product reads them: whole slices."""
        return (self.steps(k) + KC - 1) // KC * LDA * self.width * m

    def panel_elements(self, k: int) -> int:
        return self.steps(k) * NR * self.width


FORMATS = {
    np.dtype(np.float32): Format(np.float32, np.float32, np.float32, False),
    np.dtype(np.float16): Format(np.int16, np.float32, np.int16, False),
    np.dtype(ml_dtypes.bfloat16): Format(np.uint16, np.uint16 if HAS_BF16_DOT else np.float32, np.uint16, HAS_BF16_DOT),
}


@dataclass(frozen=True, eq=False)
class Linear:
    """A packed weight (N, K) and its bias, which has zeros up to a whole panel."""

    panels: Any
    bias: Any
    n: int
    k: int


def in_memory(elements: int, dtype: Any) -> tuple[Any, bool]:
    """Space for a packed weight, and that it is not there yet."""
    return aligned((elements,), dtype), False


def pack(weight: Any, bias: Any, compute: Any, variable: Any, take: Any = in_memory) -> Linear:
    """Pack (N, K), rounding each element to the variable dtype and then to the compute dtype (NUM-1).

    `take(elements, dtype)` gives the space for it, and whether it holds the packed weight already.
    """
    form = FORMATS[compute]
    n, k = weight.shape
    panels, is_filled = take(panels_of(n) * form.panel_elements(k), form.weight)
    if not is_filled:
        _fill(panels, weight, compute, variable)
    padded = np.zeros(up(n), np.float32)
    if bias is not None:
        padded[:n] = vector(bias, compute, variable)
    return Linear(panels, padded, n, k)


def _fill(panels: Any, weight: Any, compute: Any, variable: Any) -> None:
    form, (n, k) = FORMATS[compute], weight.shape
    size, step = form.panel_elements(k), max(1, CHUNK // (NR * max(k, 1))) * NR
    for row in range(0, n, step):
        rows = _rounded(weight[row : row + step], compute, variable)
        target = panels[row // NR * size : (row // NR + panels_of(len(rows))) * size]
        pack_bits(np.ascontiguousarray(rows).view(form.weight), form, target)


def pack_bits(rows: Any, form: Format, panels: Any) -> None:
    """rows (N, K), contiguous, into panels; an odd last number is paired with zero."""
    if form.paired and rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    unit = np.uint32 if form.paired else form.weight
    pack_weight(rows.view(unit), panels.view(unit))


def vector(values: Any, compute: Any, variable: Any) -> Any:
    """A bias or a norm's weight: rounded like every weight, held as float32."""
    return _rounded(values.reshape(-1), compute, variable).astype(np.float32)


def aligned(shape: Any, dtype: Any, zeroed: bool = False) -> Any:
    """An array that begins at a cache line, so that no vector of it lies across two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.zeros if zeroed else np.empty)(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def linear_bytes(n: int, k: int, compute: Any) -> int:
    """What `pack` keeps of (N, K), its bias included."""
    return panel_bytes(n, k, compute) + 4 * up(n)


def panel_bytes(n: int, k: int, compute: Any) -> int:
    form = FORMATS[compute]
    return panels_of(n) * form.panel_elements(k) * np.dtype(form.weight).itemsize


def panels_of(n: int) -> int:
    """How many panels hold n columns."""
    return (n + NR - 1) // NR


def up(columns: int) -> int:
    """The next whole number of panels, in columns."""
    return panels_of(columns) * NR


def _rounded(values: Any, compute: Any, variable: Any) -> Any:
    if values.dtype == np.float16 and variable != np.float16:
        wide = np.empty(values.shape, np.float32)
        _widen(np.ascontiguousarray(values).view(np.int16).reshape(-1), wide.reshape(-1))
        values = wide
    return cast(cast(values, variable), compute)


@jit_parallel
def _widen(bits: Any, out: Any) -> None:
    """float16 to float32, which is exact: NumPy's cast and that of ml_dtypes go number by number, on one core."""
    for i in prange(bits.size):
        out[i] = half_as_float(bits[i])
