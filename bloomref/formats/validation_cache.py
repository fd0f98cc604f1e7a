"""Cache of passed checks of large files. A file is checked again only after it has changed.

An entry is an empty file in the user's cache folder. Its name is a hash of the check and of the files' folder, sizes,
modification times and inodes.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from bloomref.cache_folder import MIN_CACHED_BYTES, user_cache_folder
from bloomref.params import Source


def is_validated(source: Source | None, check: str) -> bool:
    """True if the files have passed the check, and have not changed since then."""
    return source is not None and _path(source, check).exists()


def record_validated(source: Source | None, check: str, size: int) -> None:
    """Record that files of `size` bytes have passed a check.

    Small files are not recorded, and neither is anything if the cache folder cannot be written.
    """
    if source is not None and size >= MIN_CACHED_BYTES:
        with suppress(OSError):
            path = _path(source, check)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _path(source: Source, check: str) -> Path:
    return user_cache_folder("noted") / hashlib.sha256(f"{source} {check}".encode()).hexdigest()[:32]
