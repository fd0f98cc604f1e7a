"""The first start of `auto`: another backend answers, while a process of its own compiles kernels for later starts."""

import hashlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Final

from bloomref.cache_folder import user_cache_folder
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import BloomrefWarning
from bloomref.params import count_params
from bloomref.runtime.backend import Backend, SupportsCompilation

COMPILE_FIRST: Final = "BLOOMREF_COMPILE_FIRST"
"""Environment variable: with 1, `auto` waits for the kernels of small models, too."""
SMALL: Final = 10**8
"""Parameters from which `auto` compiles first: such a model takes seconds to load and to answer in any case."""
PATIENCE: Final = 600
"""Seconds in which a compilation ends. Another one is not started before."""
_started: list[subprocess.Popen[bytes]] = []  # an object that is dropped warns that its process still runs


def is_left_for_later(backend: Backend, config: BloomConfig, policy: DTypePolicy) -> bool:
    """True if `auto` does not wait for this backend's kernels: they are not compiled, and the model is small."""
    return (
        isinstance(backend, SupportsCompilation)
        and os.environ.get(COMPILE_FIRST) != "1"
        and count_params(config) < SMALL
        and not backend.is_compiled(policy)
    )


def compile_beside(name: str, policy: DTypePolicy) -> None:
    """Start a process that compiles a backend's kernels at low priority, and warn that they are for later starts.

    Does nothing while such a process runs, and where the cache folder cannot be written. The process outlives this one.
    """
    running = user_cache_folder("compiling") / f"{name}-{policy.name}-{_installation()}"
    if not sys.executable or not _claim(running):
        return
    command = [sys.executable, "-P", "-m", f"{__package__}.compile_kernels", name, policy.name, str(running)]
    nowhere = subprocess.DEVNULL
    _started.append(subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True))
    message = f"backend {name!r}: its kernels are being compiled in the background, once; later starts run on it"
    warnings.warn(message, BloomrefWarning, stacklevel=2)


def _claim(running: Path) -> bool:
    """Create the file that stands for a running compilation. False where it exists, or cannot be written."""
    try:
        running.parent.mkdir(parents=True, exist_ok=True)
        if running.exists() and time.time() - running.stat().st_mtime > PATIENCE:
            running.unlink()
        running.touch(exist_ok=False)
        return True
    except OSError:
        return False


def _installation() -> str:
    """Eight digits for this Python and this copy of bloomref: two of them do not wait for each other."""
    return hashlib.sha256(f"{sys.executable} {Path(__file__)}".encode()).hexdigest()[:8]
