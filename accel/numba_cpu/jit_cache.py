"""The folder of compiled kernels, and the marks that say for which dtypes it is complete.

Numba's cache checks only the file of the function itself: it misses a change in a kernel that another file inlined.
Each state of this package's sources therefore has a separate folder, named by their hash, below the user's cache
folder.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numba

from accel.numba_cpu.isa import ISA
from bloomref.cache_folder import user_cache_folder


def cache_folder() -> Path:
    """Folder in `$NUMBA_CACHE_DIR` or `~/.cache/bloomref/numba`, named by sources, Numba's version and ISA."""
    digest = hashlib.sha256(f"{numba.__version__} {ISA}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or user_cache_folder("numba"))
    return base / digest.hexdigest()[:16]


def use_cache_folder() -> None:
    """Make `cache_folder()` Numba's cache. Call it before a kernel module is imported."""
    numba.config.CACHE_DIR = str(cache_folder())


def is_marked(name: str) -> bool:
    """True if `mark(name)` was called for this state of the sources."""
    return (cache_folder() / f"{name}.compiled").exists()


def mark(name: str) -> None:
    """Record that everything of that name is compiled. Does nothing where the folder cannot be written."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / f"{name}.compiled").touch()
