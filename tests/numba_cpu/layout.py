"""Packed rows, written by the kernels and read back by the layout's formula."""

import numpy as np

from accel.numba_cpu.isa import KC, LDA
from accel.numba_cpu.linear import put_rows
from accel.numba_cpu.microkernel import widen
from accel.numba_cpu.structs import PackedRows


def as_rows(form, x):
    m, k = x.shape
    rows, wide = np.full(form.row_elements(m, k), 7, form.rows), np.full((m, k + 3), np.nan, np.float32)
    wide[:, :k] = x
    put_rows(wide, k, PackedRows(rows, m))
    return rows


def read_rows(form, rows, m, k):
    """Read packed rows by the layout's formula: slices of KC steps, rows LDA steps apart."""
    numbers = widen(rows).reshape(-1, m, LDA * form.width)[:, :, : KC * form.width]
    return numbers.swapaxes(0, 1).reshape(m, -1)[:, :k]
