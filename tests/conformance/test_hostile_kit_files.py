"""Damaged waivers and folders of vectors: refused in a sentence that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomref.conformance.adapters.process import Process
from bloomref.conformance.run.waivers import read_waivers
from bloomref.conformance.vectors import read
from bloomref.errors import BadWeights, BloomrefError, InvalidInput

GOOD = b"[[waiver]]\nwhere = 'hole'\nreason = 'x'\n"
WAIVERS = {
    "not UTF-8": b"\xff\xfe",
    "not TOML": b"[[[",
    "a number": b"waiver = 3",
    "texts": b"waiver = ['a']",
    "a reason that is a number": b"[[waiver]]\nwhere = 'hole'\nreason = 3\n",
    "a link that is a list": GOOD + b"link = ['a']\n",
    "a link that is a number": GOOD + b"link = 5\n",
    "another key": GOOD + b"\"\\u001b[2J\" = 'x'\n",
    "deep": b"a = " + b"[" * 5000 + b"]" * 5000,
}


@pytest.mark.parametrize("name", WAIVERS)
def test_damaged_waivers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(WAIVERS[name])
    with pytest.raises(InvalidInput, match=r"w\.toml") as caught:
        read_waivers([str(path)])
    assert str(caught.value).isprintable()


@given(st.one_of(st.binary(max_size=60), st.text("[]waiver=\n'\"#.{}", max_size=60).map(str.encode)), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_waivers_or_refused(tmp_path: Path, data: bytes, after: bool) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(GOOD + data if after else data)
    try:
        entries = read_waivers([str(path)])
    except InvalidInput:
        return
    assert all(isinstance(text, str) for entry in entries for text in (entry.where, entry.reason, entry.link))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "expected").mkdir()
    for name in ("embedding.json", "expected/embedding.safetensors"):
        shutil.copy(read.REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_waivers_of_a_device_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.toml").symlink_to("/dev/zero")
    with pytest.raises(InvalidInput, match=r"w\.toml.*special file"):
        read_waivers([str(tmp_path / "w.toml")])


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / "embedding.json").read_text("utf-8"))
        change(data)
        (folder / "embedding.json").write_text(json.dumps(data))

    return apply


def first(**changes: Any) -> Callable[[Path], object]:
    return changed(lambda data: next(t for t in data["tests"] if "answers" in t).update(changes))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "not UTF-8": lambda folder: (folder / "embedding.json").write_bytes(b"\xff"),
    "not JSON": lambda folder: (folder / "embedding.json").write_text("{"),
    "deep": lambda folder: (folder / "embedding.json").write_text("[" * 100_000),
    "a list": lambda folder: (folder / "embedding.json").write_text("[]"),
    "tests that are a number": changed(lambda data: data.update(tests=5)),
    "a test that is a number": changed(lambda data: data["tests"].append(5)),
    "an empty test": changed(lambda data: data["tests"].append({})),
    "no tiers": changed(lambda data: data.pop("tiers")),
    "no answer": changed(lambda data: data["tests"].append({"id": "x", "ask": "call", "expect": "valid", "flags": []})),
    "no question": first(ask=None),
    "an id that is a list": first(id=[1]),
    "flags that are numbers": first(flags=[1]),
    "an input that is a list": first(input=[]),
    "answers that are a text": first(answers="x"),
    "an answer without tensors": first(answers=[{"note": "x"}]),
    "a tensor that is not there": first(answers=[{"note": "x", "tensors": {"a": "nowhere"}}]),
    "a file outside of the folder": changed(lambda data: data.update(expected="../x.safetensors")),
    "a missing file": lambda folder: (folder / "expected/embedding.safetensors").unlink(),
    "a file that is cut": lambda folder: (folder / "expected/embedding.safetensors").write_bytes(b"12345678"),
    "a folder for a file": lambda folder: (folder / "embedding.json").unlink() or (folder / "embedding.json").mkdir(),
}


def test_undamaged_vectors_are_read(folder: Path) -> None:
    assert read.read.__wrapped__(folder)


@pytest.mark.clause("VEC-2")
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_vectors(name: str, folder: Path) -> None:
    DAMAGE[name](folder)
    with pytest.raises(BloomrefError) as caught:
        read.read.__wrapped__(folder)
    assert isinstance(caught.value, BadWeights), caught.value
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("command", ["'", 'a "b', "", "   "])
def test_a_command_line_that_is_none(command: str) -> None:
    with pytest.raises(InvalidInput, match="program: expected a command"):
        Process(command, 1.0, None)
