"""Stored numbers, in both layouts: check that they are finite, and round them to another dtype, in chunks."""

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.dtypes import DType, cast
from bloomref.errors import BadWeights
from bloomref.shapes import Array

_PIECE = 1 << 18  # bytes: what is checked or converted at a time stays in the processor's cache
_HALVES = 1 << 15
_EXPONENT: dict[str, Any] = {
    "float64": np.uint64(0x7FF0_0000_0000_0000),
    "float32": np.uint32(0x7F80_0000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}


def check_finite(array: Array, name: str) -> None:
    """Raises BadWeights, naming the weight, where a number is NaN or infinite. Reads the array once, copies nothing."""
    flat, mask = array.reshape(-1), _EXPONENT[array.dtype.name]
    bits = flat.view(mask.dtype)
    step = _PIECE // mask.itemsize
    buffer = np.empty(min(step, bits.size), mask.dtype)
    for start in range(0, bits.size, step):
        piece = bits[start : start + step]
        exponents = np.bitwise_and(piece, mask, out=buffer[: piece.size])
        if exponents.max() == mask:
            first = flat[start + int(np.argmax(exponents == mask))]
            raise BadWeights(f"{name}: expected finite numbers, got {first}")


def check_fits(array: Array, dtype: DType, name: str) -> None:
    """Raises BadWeights where a finite number would not be finite in `dtype`.

    Rounding keeps the order: two numbers tell.
    """
    if array.size and is_narrower(dtype, array.dtype):
        with np.errstate(over="ignore"):
            extremes = cast(np.array([array.min(), array.max()]), dtype)
        check_finite(extremes, f"{name} as {dtype.name}")


def convert(pieces: Iterable[Array], shape: tuple[int, ...], dtype: DType, name: str) -> Array:
    """A new array of `shape` in `dtype`, from the consecutive flat pieces of the stored one; memory for itself alone.

    Raises:
        BadWeights: where a number is not finite, as stored or in `dtype`.
    """
    out = np.empty(shape, dtype)
    target = out.reshape(-1)
    start = 0
    for piece in pieces:
        check_finite(piece, name)
        with np.errstate(over="ignore"):
            filled = target[start : start + piece.size]
            round_into(filled, piece)
        if is_narrower(dtype, piece.dtype):
            check_finite(filled, f"{name} as {dtype.name}")
        start += piece.size
    return out


def round_into(target: Array, array: Array) -> None:
    """Fill `target` with the numbers of a flat array in its dtype, each rounded once, to nearest, ties to even."""
    if (array.dtype.name, target.dtype.name) == ("float16", "float32"):
        _widen_half(target, array)
    else:
        target[...] = cast(array, target.dtype)


def rounded(array: Array, dtype: DType) -> Array:
    """A contiguous array in `dtype`; itself when it is in it already."""
    if array.dtype == dtype:
        return array
    out = np.empty(array.shape, dtype)
    round_into(out.reshape(-1), array.reshape(-1))
    return out


def _widen_half(target: Array, array: Array) -> None:
    """Finite float16 to float32 by moving the bits: NumPy's cast goes number by number, at a third of the speed.

    A float32 of the same exponent and fraction bits is 2^112 times too small, subnormal numbers included.
    """
    signs = np.empty(min(_HALVES, array.size), np.uint32)
    for start in range(0, array.size, _HALVES):
        values = target[start : start + _HALVES]
        bits, sign = values.view(np.uint32), signs[: values.size]
        np.copyto(bits, array[start : start + _HALVES].view(np.uint16))
        np.left_shift(np.bitwise_and(bits, 0x8000, out=sign), 16, out=sign)
        np.left_shift(np.bitwise_and(bits, 0x7FFF, out=bits), 13, out=bits)
        np.multiply(values, np.float32(2.0**112), out=values)
        np.bitwise_or(bits, sign, out=bits)


def common_dtype(dtypes: Iterable[DType]) -> DType:
    """The narrowest dtype that holds every number of `dtypes` exactly."""
    by_name = {dtype.name: dtype for dtype in dtypes}
    for name in ("float64", "float32"):
        if name in by_name:
            return by_name[name]
    return next(iter(by_name.values())) if len(by_name) == 1 else np.dtype(np.float32)


def is_narrower(dtype: DType, than: DType) -> bool:
    """True if finite numbers of the second dtype can overflow in the first."""
    largest: Any = ml_dtypes.finfo
    return float(largest(dtype).max) < float(largest(than).max)
