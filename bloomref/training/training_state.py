"""Checkpoints of a training run, written atomically. Clause: TRN-14.

`checkpoint-00000012` is the folder with the state after twelve updates. It is written under a temporary name, flushed
to the disk and renamed. Only then is the previous one removed. So the newest folder with such a name is complete at any
time, even after the process was killed.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe
from bloomref.formats.files import read_json, write_json
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.formats.staging import staged_folder, temporary_path
from bloomref.shapes import Array

_NAME = re.compile(r"checkpoint-(\d{8})")
# temporary folders of an interrupted writer; the second form is that of version 0.1.0
_LEFTOVER = re.compile(r"\.checkpoint-\d{8}\.[0-9a-f]{12}\.tmp|\.(new|old)-[0-9a-f]{12}")
_STATE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """State of a training run.

    Args:
        values: JSON-compatible values.
        arrays: name of a group -> name -> array.
    """

    values: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Array]]


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
        for path in [*stage.iterdir(), stage]:
            _flush(path)
    _flush(folder)
    for path in folder.iterdir():
        if path != target and (_NAME.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)):
            _retire(path)


def load(path: Path) -> TrainingState:
    """Read a checkpoint. Its arrays are read-only memory maps, so the files must exist until the arrays are copied.

    Raises:
        BadWeights: when the checkpoint is damaged.
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
