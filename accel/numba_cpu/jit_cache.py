"""The folder of compiled kernels, and the marks that say for which dtypes it is complete.

Numba's cache checks only the file of the function itself: it misses a change in a kernel that another file inlined.
Each state of this package's sources therefore has a separate folder, named by their hash, below the user's cache
folder. Numba finds a kernel again only under the same Python and processor, and in the same file with the same time of
change: these are part of the name, too, so that the marks of one installation do not count for another one.
"""

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba

from accel.numba_cpu.isa import ISA
from bloomref.cache_folder import user_cache_folder


def cache_folder() -> Path:
    """Folder in `$NUMBA_CACHE_DIR` or `~/.cache/bloomref/numba`, named by all that a kernel depends on."""
    python = (sys.version_info[:3], sys.implementation.cache_tag, sys.flags.optimize)
    forced = map(os.environ.get, ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"))
    features = llvmlite.binding.get_host_cpu_features().flatten()
    processor = (llvmlite.binding.get_host_cpu_name(), features, *forced)
    digest = hashlib.sha256(f"{numba.__version__} {ISA} {python} {processor}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode() + source.read_bytes())
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or user_cache_folder("numba"))
    return base / digest.hexdigest()[:16]


def use_cache_folder() -> None:
    """Make `cache_folder()` Numba's cache, if it can be written. Call it before a kernel module is imported."""
    if can_cache():
        numba.config.CACHE_DIR = str(cache_folder())


@cache
def can_cache() -> bool:
    """True if the folder can be written. Where it cannot, every process compiles its kernels anew."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            return True
    except OSError:
        return False


def is_marked(name: str) -> bool:
    """True if `mark(name)` was called for this state of the sources."""
    return (cache_folder() / f"{name}.compiled").exists()


def mark(name: str) -> None:
    """Record that everything of that name is compiled. Does nothing where the folder cannot be written."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / f"{name}.compiled").touch()
