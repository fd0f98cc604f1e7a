"""Weights on their way into panels: rounded to the compute dtype, a few panels at a time, from memory or from a file's map."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from accel.numba_cpu.cpu import HAS_BF16_DOT, PANEL
from accel.numba_cpu.linear import pack_weight, pack_weight_pairs
from bloomref.dtypes import cast

CHUNK = 4096  # rows converted at a time: the only copy beside the packed weights


@dataclass(frozen=True)
class Format:
    """How the numbers of one compute dtype are held: element type of weights, of packed rows, steps of one K."""

    weight: Any
    rows: Any
    cache: Any
    paired: bool

    def steps(self, k: int) -> int:
        return (k + 1) // 2 if self.paired else k

    def panel_elements(self, k: int) -> int:
        return self.steps(k) * PANEL * (2 if self.paired else 1)


FORMATS = {
    np.dtype(np.float32): Format(np.float32, np.float32, np.float32, False),
    np.dtype(np.float16): Format(np.int16, np.float32, np.int16, False),
    np.dtype(ml_dtypes.bfloat16): Format(np.uint16, np.uint32 if HAS_BF16_DOT else np.float32, np.uint16, HAS_BF16_DOT),
}


@dataclass(frozen=True, eq=False)
class Linear:
    """A packed weight (N, K) and its bias."""

    panels: Any
    bias: Any
    n: int
    k: int


def pack(weight: Any, bias: Any, compute: Any, variable: Any) -> Linear:
    """Pack (N, K), rounding each element to the variable dtype and then to the compute dtype (NUM-1)."""
    form = FORMATS[compute]
    n, k = weight.shape
    size = form.panel_elements(k)
    panels = np.empty((n + PANEL - 1) // PANEL * size, form.weight)
    for row in range(0, n, CHUNK):
        rows = cast(cast(weight[row : row + CHUNK], variable), compute)
        target = panels[row // PANEL * size : (row + len(rows) + PANEL - 1) // PANEL * size]
        bits = np.ascontiguousarray(rows).view(form.weight)
        if form.paired:
            pack_weight_pairs(bits, target, form.steps(k))
        else:
            pack_weight(bits, target, k)
    return Linear(panels, vector(bias, compute, variable) if bias is not None else np.zeros(n, np.float32), n, k)


def vector(values: Any, compute: Any, variable: Any) -> Any:
    """A bias or a norm's weight: rounded like every weight, held as float32."""
    return cast(cast(np.ascontiguousarray(values).reshape(-1), variable), compute).astype(np.float32)
