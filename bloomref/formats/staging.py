"""Atomic writes of files and folders: everything is written under a temporary name first. Clause: WGT-12.

The writer of a temporary folder holds a lock on it. The system releases the lock when the process ends, however it
ends, so the next writer of the same target can tell the leftover of a dead process from the folder of a living one.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bloomref.errors import invalid

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers stay there
    fcntl = None  # type: ignore[assignment]


def temporary_path(target: Path) -> Path:
    """Return a new hidden path next to `target`, such as `.target.123456789abc.tmp`."""
    return target.with_name(f".{_short(target)}.{secrets.token_hex(6)}.tmp")


def _short(target: Path) -> str:
    return target.name[:50]  # a name has at most 255 bytes, a character up to four


@contextmanager
def stage(target: Path) -> Iterator[Path]:
    """Context manager: a new, locked folder next to `target`, removed at the end of the block.

    Folders that dead writers of `target` have left are removed first.
    """
    remove_leftovers(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = temporary_path(target)
        folder.mkdir(parents=True)
        lock = _lock(folder, wait=True)
        if folder.is_dir():  # else another writer took it for a leftover before it was locked
            return folder, lock


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder. Returns the descriptor that holds the lock; None: it is locked already, or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of `target` whose writers are dead."""
    pattern = re.compile(re.escape(f".{_short(target)}.") + r"[0-9a-f]{12}\.tmp")
    try:
        paths = list(target.parent.iterdir())
    except OSError:  # no such folder, or one that cannot be listed
        return
    for path in paths:
        if pattern.fullmatch(path.name) and (lock := _lock(path, wait=False)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Context manager: a temporary path, moved to `target` at the end of the block, removed after an error.

    A regular file is replaced in one rename. A link stays a link: the file to which it points is replaced. A device or
    a pipe stays what it is: the bytes are written into it (WGT-23).

    Raises:
        InvalidInput: when the target is a folder.
    """
    if target.is_dir():
        raise invalid("output", "a file to write", f"the folder {target}")
    if _is_special(target):
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as elsewhere:
            path = Path(elsewhere) / target.name
            yield path
            with path.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    final = Path(os.path.realpath(target)) if target.is_symlink() else target
    with stage(final) as folder:
        path = folder / final.name
        yield path
        os.replace(path, final)


def _is_special(target: Path) -> bool:
    """True for a device, a pipe or a socket, and for a name of an open file of this process, such as /dev/stdout."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) or target.absolute().parts[1:2] in (("dev",), ("proc",))


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Context manager: a new folder, renamed to `target` at the end of the block, removed after an error.

    `target` must be an empty folder, or not exist.
    """
    with stage(target) as folder:
        yield folder
        os.replace(folder, target)
