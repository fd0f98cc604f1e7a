"""Kernels under several Python threads, and after a fork: what Numba's threading layer allows, and a sentence else.

Numba runs its parallel kernels on one of three layers. OpenMP and TBB may be entered by several threads at once; a
second thread on Numba's own layer, `workqueue`, ends the process. GNU's OpenMP ends a child process that was forked
after its first use. Calls are therefore serialised until the layer is known to allow more, and refused in such a child.
"""

import os
import threading
from collections.abc import Callable
from functools import wraps
from pickle import UnpicklingError
from typing import ParamSpec, TypeVar

import numba

from accel.numba_cpu.jit_cache import cache_folder
from bloomref.errors import Unsupported

P = ParamSpec("P")
R = TypeVar("R")


class _Process:
    """State of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_free = False
        """True once the layer is known, and may be entered by several threads at once."""
        self.is_orphan = False
        """True in a child that was forked after GNU's OpenMP had started its threads."""

    def after_fork(self) -> None:
        self.lock = threading.RLock()  # a thread that the child does not have may hold the parent's
        self.is_orphan = self.is_orphan or layer() == "omp"


_process = _Process()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_process.after_fork)


def layer() -> str | None:
    """Numba's threading layer: "omp", "tbb" or "workqueue"; None before the first parallel kernel."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


def enters_kernels(call: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a function that runs kernels.

    Raises:
        Unsupported: in a process that was forked after the first kernel, and where Numba's cache is damaged.
    """

    @wraps(call)
    def entered(*arguments: P.args, **options: P.kwargs) -> R:
        if _process.is_orphan:
            hint = "start processes with multiprocessing's method 'spawn', or choose backend 'numpy'"
            raise Unsupported(
                f"backend 'numba': expected a process of its own, got one forked after OpenMP began; {hint}"
            )
        try:
            if _process.is_free:
                return call(*arguments, **options)
            with _process.lock:
                result = call(*arguments, **options)
                _process.is_free = layer() in ("omp", "tbb")
                return result
        except (UnpicklingError, EOFError) as error:
            message = f"{cache_folder()}: expected compiled kernels, got damaged files ({error}); delete this folder"
            raise Unsupported(f"backend 'numba': {message}") from error

    return entered
