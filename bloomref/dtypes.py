"""Dtype policies, and the rounding rule of reduced precision.

NUM-1  A policy names two dtypes: weights are stored in its *variable* dtype and rounded to its *compute* dtype for use.
NUM-2  A block computes in the *accumulation* dtype (float64 for float64, else float32) and rounds its results once:
       its output, and the keys and values that it writes to the cache. Logits are not rounded.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.errors import invalid, represented
from bloomref.shapes import Array

DType = np.dtype[Any]

_FLOATS: dict[str, DType] = {
    "float64": np.dtype(np.float64),
    "float32": (FLOAT32 := np.dtype(np.float32)),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class DTypePolicy:
    """The dtype of stored weights and that of results; names and meanings are those of Keras."""

    name: str
    variable_dtype: DType
    compute_dtype: DType


POLICIES: dict[str, DTypePolicy] = {
    **{name: DTypePolicy(name, dtype, dtype) for name, dtype in _FLOATS.items()},
    "mixed_float16": DTypePolicy("mixed_float16", _FLOATS["float32"], _FLOATS["float16"]),
    "mixed_bfloat16": DTypePolicy("mixed_bfloat16", _FLOATS["float32"], _FLOATS["bfloat16"]),
}


def dtype_policy(dtype: object = None) -> DTypePolicy:
    """The policy that `dtype` names: a policy's name, a NumPy or ml_dtypes dtype, a `DTypePolicy`, or None (float32).

    Raises:
        InvalidInput: for any other dtype.
    """
    if isinstance(dtype, DTypePolicy):
        return dtype
    name = "float32" if dtype is None else dtype
    if not isinstance(name, str):
        try:
            name = np.dtype(name).name  # type: ignore[call-overload]
        except (TypeError, ValueError, RecursionError):  # a Keras policy, a torch dtype, or anything
            name = getattr(dtype, "name", "")
    if not isinstance(name, str) or name not in POLICIES:
        raise invalid("dtype", f"one of {', '.join(POLICIES)}", represented(dtype))
    return POLICIES[name]


def floating_dtype(name: str) -> DType:
    """The dtype of one storage name (float64, float32, float16 or bfloat16)."""
    if name not in _FLOATS:
        raise invalid("dtype", f"one of {', '.join(_FLOATS)}", represented(name))
    return _FLOATS[name]


def accumulation_dtype(dtype: DType) -> DType:
    """float64 for float64, float32 for every narrower type (NUM-2)."""
    return _FLOATS["float64"] if dtype == _FLOATS["float64"] else _FLOATS["float32"]


def cast(array: Array, dtype: DType) -> Array:
    """Round every number once, to nearest, ties to even; return `array` itself if it has the dtype (NUM-1)."""
    if (array.dtype.name, dtype.name) != ("float64", "bfloat16"):
        return array.astype(dtype, copy=False)
    single = array.astype(
        np.float32
    )  # ml_dtypes rounds twice, through float32; rounding that step to odd makes the second step right
    bits = single.view(np.uint32)
    bits -= np.abs(single) > np.abs(array)
    bits |= single != array
    return single.astype(dtype)
