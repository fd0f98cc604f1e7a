"""Keys and values of one row of a cache, to and from plain arrays (H, S, K) in the bits of the cache, and between rows.

`attention` has the layout. A view of it has an axis of heads, two of positions and two of columns.
"""

from dataclasses import dataclass

import numpy as np

from accel.numba_cpu.isa import NR
from accel.numba_cpu.weight_packing import Format, panels_of
from bloomref.shapes import Array


@dataclass(frozen=True)
class Layout:
    """Sizes of a cache, and how the elements of its dtype are stored."""

    form: Format
    batch: int
    heads: int
    capacity: int
    width: int

    def keys(self, flat: Array, row: int) -> Array:
        """View of a row's keys: heads, panels and lanes of positions, steps and elements of columns."""
        shape = (self.batch, self.heads, self.capacity // NR, self.form.steps(self.width), NR, self.form.width)
        return flat.reshape(shape)[row].transpose(0, 1, 3, 2, 4)

    def values(self, flat: Array, row: int) -> Array:
        """View of a row's values: heads, steps and elements of positions, panels and lanes of columns."""
        pair = self.form.width
        shape = (self.batch, self.heads, panels_of(self.width), self.capacity // pair, NR, pair)
        return flat.reshape(shape)[row].transpose(0, 2, 4, 1, 3)


def read(view: Array, stop: int, width: int) -> Array:
    """Copy of the positions [0, stop) and the first `width` columns."""
    heads, _, group = view.shape[:3]
    parts = -(-stop // group)
    return np.ascontiguousarray(view[:, :parts].reshape(heads, parts * group, -1)[:, :stop, :width])


def write(view: Array, start: int, numbers: Array) -> None:
    """Write positions from `start` on; what shares their panels stays."""
    heads, _, group = view.shape[:3]
    count, width = numbers.shape[1:]
    first, last = start // group, -(-(start + count) // group)
    part = view[:, first:last].copy()
    plain = part.reshape(heads, (last - first) * group, -1)
    plain[:, start - first * group : start - first * group + count, :width] = numbers
    view[:, first:last] = plain.reshape(part.shape)


def move(view: Array, rows: Array, part: slice) -> None:
    """Copy a part of the third axis of row rows[i] into row i, for every i at once."""
    moved = np.flatnonzero(rows != np.arange(len(rows)))
    view[moved, :, part] = view[rows[moved], :, part]
