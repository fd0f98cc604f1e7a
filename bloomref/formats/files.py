"""Files on disk: validated JSON documents, paths of shards."""

import codecs
import json
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from bloomref.errors import BadWeights, describe
from bloomref.formats.recognise import AGAIN, BROKEN_LINK, JSON, named_for_what_it_is
from bloomref.shapes import Array

MAX_JSON_BYTES = 100_000_000  # a tokenizer.json of BLOOM has 15 MB, the index of its largest checkpoint 70 kB
_LONGEST_NAME = 255  # of a file, on the usual file systems
MAX_CONFIG_BYTES = 2_000_000  # of a config: parsed, JSON takes up to sixty times its size


def regular_file(path: Path) -> Path:
    """Return `path` if it is a regular file or a link to one: the files in the hub's cache are links.

    Raises:
        BadWeights: when the path is missing, or is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise BROKEN_LINK.refusal(path, "a file") from error
        raise BadWeights(f"{path}: expected a file, got {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise BadWeights(f"{path}: expected a file, got a {'folder' if stat.S_ISDIR(mode) else 'special file'}")
    return path


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BadWeights: when the file is missing or larger than `max_bytes`, or is not one JSON object without repeated
            keys.
    """
    size = regular_file(path).stat().st_size
    if size > max_bytes:
        raise BadWeights(describe(path.name, f"at most {max_bytes} bytes", f"{size} bytes"))
    with named_for_what_it_is(path, "a JSON object", JSON):
        return parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), path.name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse one JSON object in UTF-8. Error messages call it `name`.

    Raises:
        BadWeights: when `data` is not one JSON object, or repeats a key.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
            raise BadWeights(
                f"{name}: expected a JSON object, got its first {len(data)} bytes only; {AGAIN}"
            ) from error
        raise BadWeights(f"{name}: expected a JSON object, got {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{name}: expected a JSON object, got {error}") from error
    if not isinstance(value, dict):
        raise BadWeights(describe(name, "a JSON object", type(value).__name__))
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} twice")
    return members


def write_json(path: Path, data: dict[str, Any], *, ascii_only: bool = False) -> None:
    """Write an indented JSON object. NumPy scalars are written as Python numbers.

    Args:
        ascii_only: escape all other characters. Half a surrogate pair, which JSON may have, has no other form.
    """
    text = json.dumps(data, indent=2, ensure_ascii=ascii_only, default=_python_number)
    path.write_text(text + "\n", encoding="utf-8")


def _python_number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected a value of a JSON type, got {type(value).__name__}")


def weight_map(path: Path) -> dict[str, Any]:
    """Return the `weight_map` of an index of shards.

    Raises:
        BadWeights: when the index has no `weight_map`, or an empty one.
    """
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise BadWeights(describe(f"{path.name}: weight_map", "an object that names a file for every weight", files))
    return files


def shard_path(folder: Path, name: object, index: str) -> Path:
    """Return the path of a shard. Clause: WGT-8.

    Only the name is checked: it must stay inside the folder. A link of that name may point anywhere.

    Args:
        folder: folder of the checkpoint.
        name: name of the shard in the index.
        index: name of the index, for the error message.

    Raises:
        BadWeights: when the name is absolute, leaves the folder, or is not a file name.
    """
    expected = "the name of a file inside the checkpoint's folder"
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or "\0" in name or "\\" in name:
        raise BadWeights(describe(f"{index}: weight_map", expected, name))
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise BadWeights(describe(f"{index}: weight_map", expected, name))
    return folder / name


def into_shards(arrays: Iterable[tuple[str, Array]], max_bytes: int) -> list[dict[str, Array]]:
    """Group named arrays in order, with at most `max_bytes` per group. A larger array is a separate group."""
    shards: list[dict[str, Array]] = [{}]
    size = 0
    for name, array in arrays:
        if shards[-1] and size + array.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    return shards
