"""The user's cache folder, and the size from which a model is worth an entry in it."""

import os
from pathlib import Path

MIN_CACHED_BYTES = 64 << 20
"""Bytes of weights below which nothing is cached: reading or packing them again takes no noticeable time."""


def user_cache_folder(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/bloomref`, or `~/.cache/bloomref` without that variable; `parts` name a folder below it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("bloomref", *parts)
