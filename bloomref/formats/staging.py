"""Atomic writes of files and folders: everything is written under a temporary name first. Clause: WGT-12.

The writer of a temporary folder holds a lock on it. The system releases the lock when the process ends, however it
ends, so the next writer of the same target can tell the leftover of a dead process from the folder of a living one.
"""

import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bloomref.errors import invalid

if sys.platform != "win32":  # which has no such locks: leftovers stay there
    import fcntl


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
    folder, descriptor = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock(descriptor)


def _locked_folder(target: Path) -> tuple[Path, int]:
    while True:
        folder = temporary_path(target)
        folder.mkdir(parents=True)
        with suppress(FileNotFoundError):  # another writer may take it for a leftover before it is locked
            descriptor = lock(folder)
            if folder.is_dir():
                return folder, descriptor
            unlock(descriptor)


def lock(folder: Path, wait: bool = True) -> int:
    """Lock a folder for this process. The system releases the lock when the process ends.

    Returns:
        A number for `unlock`; -1 where the system or the file system has no such locks.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    if sys.platform == "win32":
        return -1
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return -1
    return descriptor


def unlock(descriptor: int) -> None:
    """Release a lock of `lock`."""
    if descriptor >= 0:
        os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of `target` whose writers are dead."""
    pattern = re.compile(re.escape(f".{_short(target)}.") + r"[0-9a-f]{12}\.tmp")
    with suppress(OSError):  # no such folder, or one that cannot be listed
        for path in list(target.parent.iterdir()):
            if pattern.fullmatch(path.name):
                _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    try:
        descriptor = lock(path, wait=False)
    except OSError:  # its writer lives, or it is no folder
        return
    if descriptor >= 0:
        shutil.rmtree(path, ignore_errors=True)
    unlock(descriptor)


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
