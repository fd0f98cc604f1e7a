"""Seeded damage to bytes, JSON and files."""

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.random import Generator

_DEEP, _DIGITS = "deep-nesting", "many-digits"  # stand for JSON that `json.dumps` cannot write
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, 2**64, 10**9, 10**18, -(10**18)),
    *(10**400, 0.5, -0.0, 1e-300, 1e308, math.nan, math.inf, -math.inf, "", "0", "auto", "null", "../x", "/etc/passwd"),
    *("a\0b", "a\nb", "\x1b[2J", "\u202e", "\ud800", "x" * 100_000, "*", "(.|.)" * 40, "é", "意", _DEEP, _DIGITS),
    *([], {}, [[]], [None], [0], [-1], ["a"], [1, 2, 3], {"a": 1}, {"": None}, [0] * 1000, list(range(300))),
)
"""Values that JSON can have in the place of any other."""
_CONTENTS = (
    b"",
    b"\0" * 100,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
    pickle.dumps({"a": [1]}),
    b"PK\x03\x04" + b"\0" * 50,
    b"\x89HDF\r\n\x1a\n" + b"\0" * 50,
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"[" * 10**5,
    b"9" * 10**5,
)


def pick(rng: Generator, choices: Sequence[Any]) -> Any:
    """One of the choices, as it is: NumPy's own choice would convert it."""
    return choices[int(rng.integers(len(choices)))]


def damaged_bytes(data: bytes, rng: Generator) -> bytes:
    """Flip a bit, change, cut, drop, repeat or insert a range."""
    begin, length = int(rng.integers(len(data) + 1)), int(2 ** rng.uniform(0, 10))
    end = min(len(data), begin + length)
    noise = rng.bytes(end - begin)
    ways = (
        data[:begin]
        + (bytes([data[begin] ^ 1 << int(rng.integers(8))]) if begin < len(data) else b"")
        + data[begin + 1 :],
        data[:begin] + noise + data[end:],
        data[:begin],
        data[:begin] + data[end:],
        data[:end] + data[begin:],
        data[:begin] + rng.bytes(length) + data[begin:],
        data[:begin] + b"\0" * (end - begin) + data[end:],
    )
    return pick(rng, ways)


def damaged_value(value: Any, rng: Generator) -> Any:
    """A copy of a JSON value with one change at a random place."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        return _damaged_object(value, rng)
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = int(rng.integers(len(value)))
        way = rng.random()
        if way < 0.1:
            return value[:place] + value[place + 1 :]
        if way < 0.2:
            return [*value, value[place]]
        return [*value[:place], damaged_value(value[place], rng), *value[place + 1 :]]
    return pick(rng, (pick(rng, HOSTILE), pick(rng, HOSTILE), [value], {"value": value}, str(value)))


def _damaged_object(value: dict[str, Any], rng: Generator) -> dict[str, Any]:
    key, other = pick(rng, [*value]), pick(rng, [*value])
    way = rng.random()
    if way < 0.1:
        return {name: item for name, item in value.items() if name != key}
    if way < 0.2:
        return {(f"{key}_" if name == key else name): item for name, item in value.items()}
    if way < 0.3:
        return {**value, key: value[other]}
    if way < 0.35:
        return {**value, pick(rng, ("", "x" * 5000, "\x1b]0;x\x07", "a\nb", "\ud800", "type")): pick(rng, HOSTILE)}
    return {**value, key: damaged_value(value[key], rng)}


def spelled(value: Any) -> bytes:
    """JSON of a value, with the nesting and the digits that Python does not write."""
    text = json.dumps(value)
    return text.replace(f'"{_DEEP}"', "[" * 10**5 + "]" * 10**5).replace(f'"{_DIGITS}"', "9" * 5000).encode()


def damaged_json(data: bytes, rng: Generator) -> bytes:
    """One to three changes of the value, or of the bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(data, rng)
    value = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        value = damaged_value(value, rng)
    return spelled(value)


def damage_file(path: Path, rng: Generator, change: Callable[[bytes, Generator], bytes] = damaged_bytes) -> None:
    """Change a file, or put something else in its place."""
    if rng.random() > 0.08:
        path.write_bytes(change(path.read_bytes(), rng))
        return
    content = path.read_bytes()
    path.unlink()
    ways: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: path.symlink_to("gone"),
        lambda: path.symlink_to(path.name),
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.write_bytes(content + bytes(1)),
        *(lambda data=data: path.write_bytes(data) for data in _CONTENTS),
    )
    pick(rng, ways)()


def copied(base: Path, scratch: Path) -> Path:
    """A copy of a folder that may be damaged."""
    shutil.copytree(base, scratch, symlinks=True)
    return scratch
