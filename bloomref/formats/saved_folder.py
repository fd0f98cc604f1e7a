"""Saved models and adapters as folders: what a save replaces, and how an interrupted one is noticed.

Clauses: WGT-20 ... WGT-22.

A folder that did not exist appears complete, in one rename. In an existing folder files are renamed one by one. Between
the first and the last rename the folder has no config.json, so that no program loads it, and its list of files says
that the save is incomplete. The list is also what a later save may delete: nothing else in the folder is touched.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bloomref.errors import BadWeights, InvalidInput, describe, invalid
from bloomref.formats.files import read_json, shard_path, write_json
from bloomref.formats.staging import stage, staged_file, staged_folder

LIST = ".bloomref.json"
"""The list of the files that a save wrote: `{"complete": true, "files": ["config.json", ...]}`."""


def check_complete(folder: Path) -> None:
    """Refuse a folder in which an overwriting save was interrupted.

    Raises:
        BadWeights: the list of the folder's files says so, or is damaged.
    """
    if (folder / LIST).exists() and read_json(folder / LIST).get("complete") is not True:
        raise BadWeights(
            f"{folder}: expected a complete save, got one that was interrupted between its files; save it again with "
            "--force (in Python: overwrite=True)"
        )


@contextmanager
def staged_model(target: Path, config: str, overwrite: bool, rivals: tuple[str, ...] = ()) -> Iterator[Path]:
    """Context manager: a new folder whose files are moved to `target` at the end of the block.

    An error within the block leaves the target unchanged.

    Args:
        target: folder to write.
        config: name of the file without which no program loads the folder; it is removed first and moved last.
        overwrite: True: replace the files of the same names, and delete the other files that an earlier save lists.
            False: refuse a folder that has any files.
        rivals: names of files that programs would read instead of the written ones; a folder that has one which
            no earlier save lists, and which is not replaced, is refused.

    Raises:
        InvalidInput: when the target is a file, has files and `overwrite` is False, or has a rival.
    """
    if (target.exists() or target.is_symlink()) and not target.is_dir():
        raise invalid("path", "a folder to write, or a new name", f"the file {target}")
    if not target.exists():
        with staged_folder(target.absolute()) as folder:
            yield folder
            _write_list(folder, _files(folder), True)
        return
    if not overwrite and any(target.iterdir()):
        hint = "--force (in Python: overwrite=True) replaces the model in it, and keeps all other files"
        raise invalid("path", "a new or empty folder", str(target), hint)
    with stage(target / "model") as folder:
        yield folder
        _move(folder, target, config, rivals)


def _move(source: Path, target: Path, config: str, rivals: tuple[str, ...]) -> None:
    new, old = _files(source), _listed(target)
    for name in rivals:
        if name not in new and name not in old and (target / name).exists():
            hint = "it would be read in place of the new files, and no earlier save lists it: move it away"
            raise invalid("path", f"a folder without a foreign {name}", str(target), hint)
    for name in new:
        _check_place(target, name)
    _write_list(target, sorted({*old, *new}), False)
    (target / config).unlink(missing_ok=True)
    for name in sorted(new, key=config.__eq__):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name == config:
            _remove(target, set(old) - set(new))
        os.replace(source / name, target / name)
    _write_list(target, new, True)


def _check_place(target: Path, name: str) -> None:
    path = target / name
    if path.is_dir() or any(p.exists() and not p.is_dir() for p in list(path.parents)[: len(Path(name).parts) - 1]):
        raise InvalidInput(describe(name, "the place of a file to write", f"something else of that name in {target}"))


def _remove(target: Path, names: set[str]) -> None:
    for name in names:
        path = shard_path(target, name, LIST)
        if path.is_symlink() or path.is_file():
            path.unlink()


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != LIST)


def _listed(folder: Path) -> list[str]:
    if not (folder / LIST).exists():
        return []
    names = read_json(folder / LIST).get("files")
    if not isinstance(names, list):
        raise BadWeights(describe(f"{LIST}: files", "a list of names", names))
    for name in names:
        shard_path(folder, name, LIST)
    return names


def _write_list(folder: Path, names: list[str], complete: bool) -> None:
    with staged_file(folder / LIST) as path:
        write_json(path, {"complete": complete, "files": names})
