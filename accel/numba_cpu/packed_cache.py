"""A disk cache of packed weights, memory-mapped, so that the second start of a large model packs nothing.

A model whose weights come from files names them in `Params.source`. Its packed weights are one file for each folder and
dtype, below the user's cache folder. The file is written once, under a temporary name, and is valid while the model's
files, its config and the layout do not change. Decoding from a mapped file is as fast as from memory.

A small file beside it has its digest, and its size, time of change and inode. While these are the same the file is
trusted; else it is read once and compared with the digest, and packed anew where it differs.
"""

import hashlib
import json
import mmap
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from accel.numba_cpu import isa, linear, weight_packing
from bloomref.cache_folder import MIN_CACHED_BYTES, user_cache_folder
from bloomref.params import Source

SWITCH = "BLOOMREF_NUMBA_KEEP"
"""Environment variable; 0 switches the cache off."""
SPARE = 4  # the disk must have this many times the packed bytes free
PAGE = 4096
DAY = 86_400


class Store(Protocol):
    """Space for packed weights, in the order of packing."""

    def take(self, elements: int, dtype: Any) -> tuple[Any, bool]:
        """Return space for the next weight, and True if the space holds it already."""
        ...

    def finish(self) -> None:
        """Make the packed weights permanent: all are complete."""
        ...

    def abandon(self) -> None:
        """Remove an incomplete file."""
        ...


class InMemory:
    """New memory; nothing is cached."""

    def take(self, elements: int, dtype: Any) -> tuple[Any, bool]:
        return weight_packing.in_memory(elements, dtype)

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class Mapped:
    """One mapped file: a page of JSON that identifies the model, then each weight from the start of a page."""

    def __init__(self, path: Path, header: dict[str, str], total: int) -> None:
        self._path, self._temporary = path, path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
        self._position = PAGE
        self._seal = Seal(path)
        self._filled = _header_of(path) == header and path.stat().st_size == total and self._seal.holds()
        if self._filled:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # kernels take writable arrays
            return
        self._map = self._create(json.dumps(header).encode(), total)

    def _create(self, header: bytes, total: int) -> mmap.mmap:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tidy(self._path.parent)
        if shutil.disk_usage(self._path.parent).free < SPARE * total or len(header) > PAGE:
            raise OSError("no room")
        try:
            with self._temporary.open("x+b") as file:
                os.posix_fallocate(file.fileno(), 0, total)  # a full disk shows here, not as a signal while packing
                file.write(header)
                file.flush()
                return mmap.mmap(file.fileno(), total)
        except BaseException:
            self.abandon()
            raise

    def take(self, elements: int, dtype: Any) -> tuple[Any, bool]:
        array = np.frombuffer(self._map, dtype, elements, self._position)
        self._position += whole_pages(array.nbytes)
        return array, self._filled

    def finish(self) -> None:
        """Rename the file once all of it is on the disk."""
        if not self._filled:
            try:
                self._map.flush()
                self._seal.write(_digest(self._temporary), self._temporary)
                self._temporary.replace(self._path)
            except OSError:  # something else of that name, or no rights
                self.abandon()

    def abandon(self) -> None:
        self._temporary.unlink(missing_ok=True)


class Seal:
    """The digest of a file, and the state of the file that had it."""

    def __init__(self, path: Path) -> None:
        self._target, self._path = path, path.with_suffix(".seal")

    def holds(self) -> bool:
        """True if the file is as it was when it was sealed."""
        try:
            digest, state = self._path.read_text("ascii").split(" ", 1)
            if state == _state(self._target):
                return True
            if digest != _digest(self._target):
                return False
            self.write(digest, self._target)
        except (OSError, ValueError):
            return False
        return True

    def write(self, digest: str, path: Path) -> None:
        """Seal the file of that digest, now at `path`."""
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(6)}.tmp")
        temporary.write_text(f"{digest} {_state(path)}", "ascii")
        temporary.replace(self._path)


def _state(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def open_store(source: Source | None, facts: dict[str, Any], sizes: list[int]) -> Store:
    """Open the file of these weights, or memory where they have no source, are small, or the disk has no room.

    Args:
        facts: sizes and dtypes: with the source and the layout they determine the packed bytes.
        sizes: bytes of each weight.
    """
    if source is None or sum(sizes) < MIN_CACHED_BYTES or os.environ.get(SWITCH) == "0":
        return InMemory()
    about = json.dumps(facts, sort_keys=True)
    name = hashlib.sha256(f"{source.folder} {facts['dtypes']}".encode()).hexdigest()[:24]
    header = {"folder": source.folder, "state": source.state, "facts": about, "layout": layout()}
    try:
        return Mapped(packed_folder() / f"{name}.panels", header, PAGE + sum(map(whole_pages, sizes)))
    except (OSError, AttributeError):  # no room, no rights; systems without posix_fallocate
        return InMemory()


def packed_folder() -> Path:
    """Folder of the cached files."""
    return user_cache_folder("numba", "packed")


def layout() -> str:
    """Hash of everything that determines the position of a packed number."""
    digest = hashlib.sha256(f"{isa.HAS_BF16_DOT} {isa.NR}".encode())
    for module in (weight_packing, linear):
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:16]


def tidy(folder: Path) -> None:
    """Remove files of folders that no longer exist, and temporary files older than a day."""
    for path in folder.glob("*.panels"):
        with suppress(OSError, ValueError):  # a folder of that name, or a header of anything
            if not Path(str(_header_of(path).get("folder", ""))).exists():
                path.unlink(missing_ok=True)
                path.with_suffix(".seal").unlink(missing_ok=True)
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def whole_pages(size: int) -> int:
    """Bytes rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def _header_of(path: Path) -> dict[str, str]:
    try:
        if not path.is_file():  # a pipe would be waited for
            return {}
        with path.open("rb") as file:
            header = json.loads(file.read(PAGE).rstrip(b"\0"))
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
