"""Results of checks of large files are cached, so that a file is not read again until it changes.

A note is an empty file below the user's cache folder, whose name is a hash of where the files lie, their sizes, times and inodes.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from bloomref.cache_folder import MIN_CACHED_BYTES, user_cache_folder
from bloomref.params import Source


def is_noted(source: Source | None, fact: str) -> bool:
    return source is not None and _path(source, fact).exists()


def remember(source: Source | None, fact: str, size: int) -> None:
    """Cache that `fact` holds for the files. Nothing happens where the cache folder cannot be written."""
    if source is not None and size >= MIN_CACHED_BYTES:
        with suppress(OSError):
            path = _path(source, fact)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _path(source: Source, fact: str) -> Path:
    return user_cache_folder("noted") / hashlib.sha256(f"{source} {fact}".encode()).hexdigest()[:32]
