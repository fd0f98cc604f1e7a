"""Checkpoints: folders that are whole as soon as they have their name, whatever ends the process while one is written.

`checkpoint-00000012` holds the state after twelve updates. It is written under another name, brought to the disk, and
renamed; only then is the one before it removed. So at every moment the newest folder of that name is complete.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe
from bloomref.formats.files import read_json, staged_folder, temporary_path, write_json
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.shapes import Array

_NAME = re.compile(r"checkpoint-(\d{8})")
_LEFTOVER = re.compile(r"\.checkpoint-\d{8}\.[0-9a-f]{12}\.tmp|\.(new|old)-[0-9a-f]{12}")  # the second: of 0.1.0
_STATE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """State of a training run: plain values, and named groups of arrays."""

    values: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Array]]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return max(paths, key=lambda path: path.name, default=None)


def save(folder: Path, step: int, state: TrainingState) -> None:
    """Write the checkpoint of a step, then remove the older ones and what an interrupted writer left.

    Clause: TRN-14.
    """
    target = folder / f"checkpoint-{step:08d}"
    if target.exists():  # a run that was continued, and has not moved since
        return
    folder.mkdir(parents=True, exist_ok=True)
    with staged_folder(target) as stage:
        for group, arrays in state.arrays.items():
            write_safetensors(stage / f"{group}.safetensors", arrays)
        write_json(stage / _STATE, {**state.values, "groups": sorted(state.arrays)})
        for path in [*stage.iterdir(), stage]:
            _flush(path)
    _flush(folder)
    for path in folder.iterdir():
        if path != target and (_NAME.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)):
            _retire(path)


def load(path: Path) -> TrainingState:
    """Read a checkpoint; its arrays are read-only maps of the files, which must stay until they are copied.

    Raises:
        BadWeights: when it is damaged.
    """
    values = read_json(path / _STATE)
    groups = values.pop("groups", None)
    if not isinstance(groups, list) or not all(isinstance(group, str) and group.isidentifier() for group in groups):
        raise BadWeights(describe(f"{path.name}: groups", "a list of names", groups))
    return TrainingState(values, {group: _read(path / f"{group}.safetensors") for group in groups})


def _read(path: Path) -> dict[str, Array]:
    file = SafetensorsFile(path)
    return {name: file.view(name) for name in file.entries}


def _retire(path: Path) -> None:
    """Remove a folder; it loses its name first, so that half of it is never taken for a checkpoint."""
    old = temporary_path(path)
    os.replace(path, old)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
