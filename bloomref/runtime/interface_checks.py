"""Checks of what a backend returns. Each raises BadBackend, with one sentence that names the method and the clause.

They compare types, dtypes, shapes and names. Whether the numbers are right is for the conformance kit.
"""

from collections.abc import Mapping
from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np

from bloomref.dtypes import DType
from bloomref.errors import BadBackend, describe
from bloomref.runtime.backend import Backend, Memory, Prepared

Shape = tuple[int | None, ...]
"""The expected shape of an array. None: any length."""


def broken(backend: str, method: str, duty: str, got: object) -> BadBackend:
    """The error for a method that does not do its duty: `return logits in float32 (BKD-13)`."""
    value = got if isinstance(got, str) else _kind(got)
    return BadBackend(describe(f"backend {backend!r}", f"{method} to {duty}", value))


def raised(backend: str, method: str, error: Exception) -> BadBackend:
    """The error for a method that must not raise this one."""
    frame = extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    return BadBackend(f"backend {backend!r}: {method} raised {type(error).__name__}: {error} ({where})")


def check_backend(name: str, backend: Any) -> None:
    """Check that the factory of an entry point has returned a backend."""
    if backend is None:
        raise broken(name, "its factory", "return a Backend (BKD-23)", "None; does it end with `return`?")
    _check_members(name, "its factory", "Backend", Backend, backend)
    if not isinstance(backend.name, str):
        raise broken(name, "`name`", "be a string (BKD-23)", backend.name)


def check_prepared(backend: str, method: str, prepared: Any) -> None:
    """Check what `prepare` or `prepare_with_adapters` has returned."""
    if prepared is None:
        raise broken(backend, method, "return a Prepared (BKD-1)", "None; does it end with `return`?")
    _check_members(backend, method, "Prepared", Prepared, prepared)


def check_reason(backend: str, reason: Any) -> None:
    """Check what `unsupported` has returned: None, or why the model cannot run."""
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise broken(backend, "unsupported", "return None or a sentence with the reason (BKD-6)", repr(reason))


def check_cache(backend: str, cache: Any) -> None:
    """Check what `new_cache` or `select` of a cache has returned."""
    if not callable(getattr(cache, "select", None)):
        raise broken(backend, "new_cache", "return a Cache, which has `select` (BKD-4)", cache)


def check_array(backend: str, method: str, array: Any, dtype: DType, shape: Shape) -> None:
    """Check an array that a backend has copied to the host."""
    if not isinstance(array, np.ndarray):
        raise broken(backend, method, "return a NumPy array (BKD-13)", array)
    if array.dtype != dtype:
        raise broken(backend, method, f"return {dtype} (BKD-13)", str(array.dtype))
    if array.shape != shape and not _matches(array.shape, shape):
        expected = "(" + ", ".join("B" if length is None else str(length) for length in shape) + ")"
        raise broken(backend, method, f"return an array of shape {expected} (BKD-13)", str(array.shape))


def check_tokens(backend: str, token_ids: Any, rows: int, count: int, vocabulary_size: int) -> None:
    """Check what `tokens` has returned."""
    if not isinstance(token_ids, np.ndarray) or token_ids.dtype.kind not in "iu":
        got = str(token_ids.dtype) if isinstance(token_ids, np.ndarray) else token_ids
        raise broken(backend, "tokens", "return a NumPy array of integers (BKD-18)", got)
    if token_ids.shape != (rows, count):
        raise broken(backend, "tokens", f"return an array of shape ({rows}, {count}) (BKD-18)", str(token_ids.shape))
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < vocabulary_size:
        raise broken(
            backend, "tokens", f"return ids in [0, {vocabulary_size}) (BKD-18)", str(token_ids.ravel()[:8].tolist())
        )


def check_gradients(
    backend: str, loss: Any, gradients: Any, shapes: Mapping[str, tuple[int, ...]], dtype: DType
) -> None:
    """Check what `loss_and_gradients` has returned.

    Args:
        shapes: key of every trainable weight and factor -> its shape.
    """
    method = "loss_and_gradients"
    if not isinstance(loss, float | np.floating):
        raise broken(backend, method, "return the loss as a float (BKD-19)", loss)
    if not isinstance(gradients, Mapping):
        raise broken(backend, method, "return a dictionary of gradients (BKD-19)", gradients)
    if difference := sorted(shapes.keys() ^ gradients.keys()):
        what = "without the" if difference[0] in shapes else "with a"
        raise broken(backend, method, "return the trainable keys (GRD-6)", f"gradients {what} key {difference[0]!r}")
    for key, shape in shapes.items():
        gradient = gradients[key]
        if not isinstance(gradient, np.ndarray) or gradient.dtype != dtype or gradient.shape != shape:
            duty = f"return {key!r} as a NumPy array of {dtype} and shape {shape} (GRD-5)"
            raise broken(backend, method, duty, _array(gradient))


def check_memory(backend: str, memory: Any) -> None:
    """Check what `memory` has returned."""
    if not isinstance(memory, Memory):
        raise broken(backend, "memory", "return a Memory (BKD-15)", memory)
    sizes = (memory.weights, memory.cache, memory.working)
    if not all(isinstance(size, int | np.integer) and size >= 0 for size in sizes):
        raise broken(backend, "memory", "return bytes as integers >= 0 (BKD-15)", repr(sizes))


def _check_members(backend: str, method: str, type_name: str, protocol: type, value: Any) -> None:
    """Refuse an object without a member of the protocol. A stub inherited from the protocol does not count."""
    stubs = {name: member for name, member in vars(protocol).items() if not name.startswith("_")}
    for name in [*protocol.__annotations__, *stubs]:
        member = getattr(value, name, None)
        if member is None or getattr(member, "__func__", None) is stubs.get(name, value):
            duty = f"return a {type_name} with `{name}` (BKD-23)"
            raise broken(backend, method, duty, f"{_kind(value)}, which has none")


def _matches(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(b in (None, a) for a, b in zip(shape, expected, strict=True))


def _array(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else _kind(value)


def _kind(value: object) -> str:
    """The type of an object, in words: `a torch.Tensor`."""
    if value is None:
        return "None"
    module = type(value).__module__
    return "a " + ("" if module == "builtins" else f"{module}.") + type(value).__qualname__
