"""What both layouts do with stored numbers: check that they are finite, and round them to another dtype, in pieces."""

from collections.abc import Iterable

import numpy as np

from bloomref.dtypes import DType
from bloomref.errors import BadWeights
from bloomref.shapes import Array

_PIECE = 1 << 18  # bytes: what is checked or converted at a time stays in the processor's cache
_EXPONENT = {
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
            at = start + int(np.argmax(exponents == mask))
            raise BadWeights(f"{name}: expected finite numbers, got {flat[at]} at flat index {at}")


def convert(array: Array, dtype: DType, name: str) -> Array:
    """A copy rounded to `dtype`, with no more memory than the copy itself.

    Raises:
        BadWeights: where a number is not finite as stored; a number beyond the range of `dtype` becomes infinite, as it
            does in every cast, and is refused too.
    """
    check_finite(array, name)
    out = np.empty(array.shape, dtype)
    source, target = array.reshape(-1), out.reshape(-1)
    step = _PIECE // dtype.itemsize
    with np.errstate(over="ignore"):
        for start in range(0, source.size, step):
            target[start : start + step] = source[start : start + step]
    if dtype.itemsize < array.dtype.itemsize or (dtype.name, array.dtype.name) == ("float16", "bfloat16"):
        check_finite(out, f"{name} as {dtype.name}")
    return out


def common_dtype(dtypes: Iterable[DType]) -> DType:
    """The narrowest dtype that holds every number of `dtypes` exactly."""
    found = {dtype.name: dtype for dtype in dtypes}
    for name in ("float64", "float32"):
        if name in found:
            return found[name]
    return next(iter(found.values())) if len(found) == 1 else np.dtype(np.float32)
