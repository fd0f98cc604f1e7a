"""Where compiled kernels are kept between runs.

Numba's cache looks at the file of the function alone and misses a change in a kernel that another file inlined. So each state
of this package's sources has a folder of its own, named by their hash, below the user's cache folder.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numba

from accel.numba_cpu.isa import ISA
from bloomref.cache_folder import user_cache_folder


def cache_folder() -> Path:
    """`$NUMBA_CACHE_DIR` or `~/.cache/bloomref/numba`, then the hash of this package's sources, Numba's version and the ISA."""
    digest = hashlib.sha256(f"{numba.__version__} {ISA}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or user_cache_folder("numba"))
    return base / digest.hexdigest()[:16]


def use_cache_folder() -> None:
    """Make Numba keep what it compiles there; to be called before a kernel module is imported."""
    numba.config.CACHE_DIR = str(cache_folder())


def is_marked(name: str) -> bool:
    """Whether everything of that name was compiled into the folder."""
    return (cache_folder() / f"{name}.compiled").exists()


def mark(name: str) -> None:
    """Where nothing can be kept, nothing is marked."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / f"{name}.compiled").touch()
