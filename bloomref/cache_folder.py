"""The user's cache folder, and the size from which a model is worth an entry in it."""

import os
from pathlib import Path

MIN_CACHED_BYTES = 64 << 20
"""Bytes of weights below which nothing is cached: reading or packing them again takes no noticeable time."""


def user_cache_folder(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/bloomref`, or `~/.cache/bloomref` without that variable; `parts` name a folder below it.

    Without a home, or with a relative one, the folder is one that cannot be created, so that nothing is cached.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return (base if base.is_absolute() else Path(os.devnull)).joinpath("bloomref", *parts)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no variable HOME, and a user that the system does not know
        return Path(os.devnull)
