"""Checkpoints of a training run, written atomically. Clause: TRN-14.

`checkpoint-00000012` is the folder with the state after twelve updates. It is written under a temporary name, flushed
to the disk and renamed. Only then is the previous one removed. So the newest folder with such a name is complete at any
time, even after the process was killed. `checksums.json` has a digest of every other file, so that a damaged checkpoint
is never continued (TRN-20).
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe, invalid
from bloomref.formats.files import read_json, write_json
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.formats.staging import lock, staged_folder, temporary_path, unlock
from bloomref.shapes import Array

_NAME = re.compile(r"checkpoint-(\d{8})")
# temporary folders of an interrupted writer; the second form is that of version 0.1.0
_LEFTOVER = re.compile(r"\.checkpoint-\d{8}\.[0-9a-f]{12}\.tmp|\.(new|old)-[0-9a-f]{12}")
_STATE = "state.json"
_CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class TrainingState:
    """State of a training run.

    Args:
        values: JSON-compatible values.
        arrays: name of a group -> name -> array.
        step: number of updates, as the checkpoint's name says; 0: not from a checkpoint.
    """

    values: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Array]]
    step: int = 0


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Context manager: nobody else can reserve the folder meanwhile. A new one is removed if it stays empty.

    Raises:
        InvalidInput: another run has reserved it. Clause: TRN-21.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock(folder, wait=False)
    except BlockingIOError:
        hint = "wait for its end, or choose another folder"
        raise invalid(
            "checkpoints", "a folder that no other run is using", f"{folder}, which one is using", hint
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # it has files
            if is_new:
                folder.rmdir()
        unlock(descriptor)


def latest(folder: Path) -> Path | None:
    """Path of the newest checkpoint in a folder, or None."""
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return max(paths, key=lambda path: path.name, default=None)


def save(folder: Path, step: int, state: TrainingState) -> None:
    """Write the checkpoint of a step, then remove older checkpoints and temporary folders of interrupted writers.

    Clause: TRN-14.
    """
    target = folder / f"checkpoint-{step:08d}"
    if target.exists():  # a resumed run without a new step
        return
    folder.mkdir(parents=True, exist_ok=True)
    with staged_folder(target) as stage:
        for group, arrays in state.arrays.items():
            write_safetensors(stage / f"{group}.safetensors", arrays)
        write_json(stage / _STATE, {**state.values, "groups": sorted(state.arrays)})
        write_checksums(stage)
        for path in [*stage.iterdir(), stage]:
            _flush(path)
    _flush(folder)
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if path != target and is_folder and (_NAME.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)):
            _retire(path)


def load(path: Path) -> TrainingState:
    """Read a checkpoint. Its arrays are read-only memory maps, so the files must exist until the arrays are copied.

    Raises:
        BadWeights: when the checkpoint is damaged. Clause: TRN-20.
    """
    if path.is_symlink() or not path.is_dir():
        raise BadWeights(
            f"{path}: expected the folder of a checkpoint, got {'a link' if path.is_symlink() else 'a file'}"
        )
    _check(path)
    values = read_json(path / _STATE)
    groups = values.pop("groups", None)
    if not isinstance(groups, list) or not all(isinstance(group, str) and group.isidentifier() for group in groups):
        raise BadWeights(describe(f"{path.name}: groups", "a list of names", groups))
    arrays = {group: _read(path / f"{group}.safetensors") for group in groups}
    return TrainingState(values, arrays, int(path.name.rpartition("-")[2]))


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: file name -> BLAKE2b digest of the file, for every other file of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != _CHECKSUMS)
    write_json(folder / _CHECKSUMS, {path.name: _digest(path) for path in paths})


def _check(folder: Path) -> None:
    listed, names = read_json(folder / _CHECKSUMS), {path.name for path in folder.iterdir()} - {_CHECKSUMS}
    if names != set(listed):
        name = min(names ^ set(listed))
        raise BadWeights(f"{folder.name}: expected the files that {_CHECKSUMS} lists; {name} is missing or too many")
    for name, digest in listed.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or _digest(path) != digest:
            hint = "the checkpoint is damaged; begin anew, or continue from another one"
            raise BadWeights(
                describe(f"{folder.name}: {name}", f"the file that {_CHECKSUMS} describes", "another", hint)
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read(path: Path) -> dict[str, Array]:
    file = SafetensorsFile(path)
    return {name: file.view(name) for name in file.entries}


def _retire(path: Path) -> None:
    """Remove a folder. It is renamed first, so that a partly removed folder never has a checkpoint's name."""
    old = temporary_path(path)
    os.replace(path, old)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
