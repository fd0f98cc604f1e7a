"""Saves into folders in use: what is refused, what is replaced, and what an interrupted save leaves."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bloomref import BloomBackbone, BloomConfig
from bloomref.cli.app import app
from bloomref.errors import BadWeights, BloomrefError, InvalidInput
from bloomref.formats.adapters import peft
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.formats.saved_folder import LIST, staged_model
from bloomref.formats.staging import stage, staged_file
from bloomref.params import Params, init_params

CONFIG = BloomConfig(vocabulary_size=40, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=32)
SHARDS = 5000
"""Bytes of a shard: the model has several."""


class Dies(BaseException):
    """The process ends here."""


@cache
def weights(seed: int) -> Params:
    return init_params(CONFIG, seed)


def save(folder: Path, seed: int, **options: Any) -> None:
    hf.save(folder, CONFIG, weights(seed), max_shard_bytes=SHARDS, **options)


def which(folder: Path) -> int | None:
    """Seed of the model in the folder; None: the folder is refused."""
    try:
        embedding = open_checkpoint(folder).params().word_embedding
    except BloomrefError:
        return None
    rows = [seed for seed in (1, 2) if np.array_equal(embedding, weights(seed).word_embedding)]
    assert rows, "a mix of two models"
    stored = open_checkpoint(folder).params().named()
    for (key, _, array), (_, _, expected) in zip(stored, weights(rows[0]).named(), strict=True):
        assert np.array_equal(array, expected), key
    return rows[0]


def dying(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The process dies in place of its rename or removal of that number."""
    left = iter(range(calls))

    def limited(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise Dies
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "replace", limited(os.replace))
    monkeypatch.setattr(Path, "unlink", limited(Path.unlink))


@pytest.mark.clause("WGT-22")
def test_an_overwriting_save_that_dies_anywhere_leaves_no_mix(tmp_path: Path) -> None:
    results = []
    for calls in range(200):
        folder = tmp_path / str(calls)
        save(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, calls)
            try:
                save(folder, 2)
            except Dies:
                pass
            else:
                break
        results.append(which(folder))
        if results[-1] is None and calls % 5 == 0:  # the message says what to do, others find no model, and it works
            with pytest.raises(BadWeights, match="--force"):
                open_checkpoint(folder)
            save(folder, 2)
            assert which(folder) == 2
            assert {p.name for p in folder.iterdir()} == {LIST, *json.loads((folder / LIST).read_text())["files"]}
    assert results[0] == 1
    assert which(folder) == 2
    assert None in results
    assert set(results) <= {1, None}


@pytest.mark.clause("WGT-22")
def test_an_incomplete_folder_has_no_config_for_others_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "model.safetensors":
            raise Dies
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Dies):
        hf.save(tmp_path, CONFIG, weights(2), max_shard_bytes=10**9)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.clause("WGT-20")
@pytest.mark.parametrize("format", ["hf", "keras"])
def test_a_folder_in_use_is_asked_for(tmp_path: Path, format: str) -> None:
    pytest.importorskip("h5py")
    model = BloomBackbone(10, 1, 1, 4, 8)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="overwrite=True"):
        model.save_to_preset(tmp_path, format)
    with pytest.raises(InvalidInput, match="overwrite=True"):
        model.add_adapter() or model.save_adapter(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    model.save_to_preset(tmp_path, format, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.clause("WGT-20")
def test_convert_asks_for_force(tmp_path: Path) -> None:
    save(tmp_path / "model", 1)
    save(tmp_path / "used", 2)
    convert = ["convert", str(tmp_path / "model"), str(tmp_path / "used"), "--to", "hf"]
    refused = CliRunner().invoke(app, convert)
    assert isinstance(refused.exception, InvalidInput)
    assert "--force" in str(refused.exception)
    assert which(tmp_path / "used") == 2
    assert CliRunner().invoke(app, [*convert, "--force"]).exit_code == 0
    assert which(tmp_path / "used") == 1


@pytest.mark.clause("WGT-21")
@pytest.mark.parametrize(
    "name",
    [
        "other.weights.h5",
        "model_of_mine.weights.h5",
        "model-00001-of-00009.safetensors",
        "model.safetensors.bak",
        "x/y",
    ],
)
def test_files_of_others_stay(tmp_path: Path, name: str) -> None:
    pytest.importorskip("h5py")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    save(tmp_path, 1)
    keras.save(tmp_path, CONFIG, weights(2))
    hf.save(tmp_path, CONFIG, weights(1))
    assert which(tmp_path) == 1
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {name, LIST, "config.json", "model.safetensors"}
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.clause("WGT-21")
def test_a_file_of_others_that_would_be_read_instead_is_refused(tmp_path: Path) -> None:
    for layout, name in ((hf, "model.safetensors"), (keras, "task.json"), (keras, "model.weights.h5")):
        pytest.importorskip("h5py")
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(InvalidInput, match=name):
            layout.save(folder, CONFIG, weights(1), max_shard_bytes=SHARDS)
        assert os.listdir(folder) == [name]


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_moves(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        hf.save(tmp_path, CONFIG, weights(2))
    (tmp_path / "model.safetensors").rmdir()
    assert which(tmp_path) == 1


def test_names_outside_the_folder_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for names in (["../precious"], [str(tmp_path / "precious")], "precious", [7]):
        folder = tmp_path / f"folder-{len(os.listdir(tmp_path))}"
        save(folder, 1)
        (folder / LIST).write_text(json.dumps({"complete": True, "files": names}))
        with pytest.raises(BadWeights, match=r"\.bloomref\.json"):
            save(folder, 2)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["empty", "link", "."])
def test_an_empty_folder_is_filled_in_place(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mounted volume, the working folder, or a link to a folder, none of which can be renamed over."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    save(Path(name) if name == "." else tmp_path / name, 1)
    assert which(tmp_path / "empty") == 1
    assert (tmp_path / "link").is_symlink()


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    target = tmp_path / "model"
    script = f"import os, pathlib; from bloomref.formats.staging import stage\nwith stage(pathlib.Path({str(target)!r})) as s: os._exit(0)"
    subprocess.run([sys.executable, "-c", script], check=True)
    (dead,) = tmp_path.iterdir()
    other = tmp_path / ".model.backup.tmp"
    other.mkdir()
    with stage(target) as living:
        assert not dead.exists()
        save(target, 1)
        assert living.is_dir()
    assert set(os.listdir(tmp_path)) == {"model", ".model.backup.tmp"}


def test_a_name_of_the_longest_possible_length(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 127, "🌸" * 63):
        write_safetensors(tmp_path / name, {"x": np.zeros(1)})
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


# --- files of output ---------------------------------------------------------------------------


@pytest.mark.clause("WGT-23")
def test_output_goes_through_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, to in (("a", "folder/real"), ("b", "a"), ("c", str(tmp_path / "folder/absolute"))):
        (tmp_path / name).symlink_to(to)
        write_safetensors(tmp_path / name, {"x": np.full(2, ord(name))})
        assert (tmp_path / name).is_symlink()
        assert SafetensorsFile(tmp_path / name).view("x").tolist() == [ord(name)] * 2
    assert set(os.listdir(tmp_path / "folder")) == {"real", "absolute"}


@pytest.mark.clause("WGT-23")
def test_output_goes_into_pipes_and_devices(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    for path in (fifo, tmp_path / "link"):
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        write_safetensors(path, {"x": np.zeros(3)})
        assert os.read(reader, 1000).endswith(bytes(24))
        os.close(reader)
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "null"):
        before = path.stat()
        write_safetensors(path, {"x": np.zeros(3)})
        assert path.stat().st_rdev == before.st_rdev
    assert (tmp_path / "null").is_symlink()
    assert set(os.listdir(tmp_path)) == {"fifo", "link", "null"}


@pytest.mark.clause("WGT-23")
def test_output_to_an_open_file_of_the_process(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        node = os.fstat(file.fileno()).st_ino
        write_safetensors(Path(f"/dev/fd/{file.fileno()}"), {"x": np.zeros(3)})
    assert (tmp_path / "out").stat().st_ino == node
    assert SafetensorsFile(tmp_path / "out").view("x").shape == (3,)


def test_output_to_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="a file to write"), staged_file(tmp_path):
        raise AssertionError("not reached")


def test_an_adapter_that_was_interrupted_is_refused(tmp_path: Path) -> None:
    model = BloomBackbone(10, 1, 1, 4, 8)
    model.add_adapter()
    model.save_adapter(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 3)
        with pytest.raises(Dies):
            model.save_adapter(tmp_path / "a", overwrite=True)
    with pytest.raises(BadWeights, match="interrupted"):
        peft.read_config(tmp_path / "a")


def test_an_error_within_the_block_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = set(os.listdir(tmp_path))
    with pytest.raises(RuntimeError, match="no"), staged_model(tmp_path, "config.json", True):
        raise RuntimeError("no")
    assert set(os.listdir(tmp_path)) == before
    assert which(tmp_path) == 1
