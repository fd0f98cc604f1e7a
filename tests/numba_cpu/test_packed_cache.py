"""The disk cache of packed weights: used while nothing has changed, else packed again, never half written."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from accel.numba_cpu import packed_cache
from bloomref import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.formats.layouts import hf
from bloomref.params import init_params

CONFIG = BloomConfig(vocabulary_size=60, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=40)
INPUT = {"token_ids": [[1, 5, 9, 7]]}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model whose packed weights are large enough to be cached, below the test's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(packed_cache.SWITCH, raising=False)
    monkeypatch.setattr(packed_cache, "MIN_CACHED_BYTES", 0)
    hf.save(tmp_path / "model", CONFIG, init_params(CONFIG, 0))
    return tmp_path / "model"


PACK_BITS = packed_cache.weight_packing.pack_bits


def load(folder: Path, dtype: str = "float32") -> BloomBackbone:
    return BloomBackbone.from_preset(folder, dtype=dtype, backend="numba")


def files() -> dict[str, int]:
    paths = packed_cache.packed_folder().glob("*")
    return {path.name: path.stat().st_ino for path in paths if path.suffix != ".seal"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_second_start_maps_what_the_first_one_packed(folder, dtype, monkeypatch):
    first = load(folder, dtype)(INPUT)
    before = files()
    monkeypatch.setattr("accel.numba_cpu.weight_packing.pack_bits", None)  # packing once more would fail
    second = load(folder, dtype)(INPUT)
    assert first.tobytes() == second.tobytes() == in_memory(folder, dtype).tobytes()
    assert files() == before
    assert len(before) == 1


def in_memory(folder: Path, dtype: str) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(packed_cache.SWITCH, "0")
        patch.setattr("accel.numba_cpu.weight_packing.pack_bits", PACK_BITS)
        return load(folder, dtype)(INPUT)


def test_each_dtype_has_its_file(folder):
    load(folder, "float32")
    load(folder, "bfloat16")
    load(folder, "mixed_bfloat16")
    assert len(files()) == 3


@pytest.mark.parametrize("change", ["weights", "config"])
def test_a_changed_model_is_packed_again(folder, change):
    load(folder)
    config = CONFIG.replace(num_heads=2) if change == "config" else CONFIG
    hf.save(folder, config, init_params(config, 1))
    changed = load(folder)(INPUT)
    assert changed.tobytes() == in_memory(folder, "float32").tobytes()
    assert len(files()) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff" * 5000, b"[" * 4096, b'{"folder": 5}', b'{"folder": "\\u0000"}']
)
def test_a_damaged_file_is_written_again(folder, damage):
    expected = load(folder)(INPUT)
    (path,) = packed_cache.packed_folder().glob("*.panels")
    path.write_bytes(damage)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert path.stat().st_size > 5000


def test_a_failure_while_packing_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr("accel.numba_cpu.weight_packing.pack_bits", None)
    with pytest.raises(TypeError):
        load(folder)
    assert files() == {}


def test_without_room_or_rights_it_is_packed_in_memory(folder, monkeypatch):
    expected = in_memory(folder, "float32")
    monkeypatch.setattr(packed_cache, "SPARE", 1 << 60)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert files() == {}
    monkeypatch.setattr(packed_cache, "SPARE", 1)
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert files() == {}


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_files_of_missing_models_are_removed(folder, tmp_path):
    load(folder)
    folder.rename(tmp_path / "elsewhere")
    left = packed_cache.packed_folder() / "interrupted.tmp"
    left.touch()
    os.utime(left, (0, 0))
    before = files()
    load(tmp_path / "elsewhere")
    assert len(files()) == 1
    assert files().keys().isdisjoint(before)


def test_weights_without_files_and_small_ones_are_not_cached(folder, monkeypatch):
    BloomBackbone.from_params(CONFIG, init_params(CONFIG, 0), backend="numba")
    assert files() == {}
    monkeypatch.setattr(packed_cache, "MIN_CACHED_BYTES", 1 << 20)
    load(folder)
    assert files() == {}


@pytest.mark.parametrize("place", [packed_cache.PAGE, packed_cache.PAGE + 4000, -1])
def test_one_other_bit_is_noticed(folder, place):
    expected = load(folder)(INPUT)
    (path,) = packed_cache.packed_folder().glob("*.panels")
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(data)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert path.read_bytes() != bytes(data)


def test_a_file_that_was_only_touched_is_used(folder, monkeypatch):
    expected = load(folder)(INPUT)
    (path,) = packed_cache.packed_folder().glob("*.panels")
    os.utime(path, (5, 5))
    monkeypatch.setattr("accel.numba_cpu.weight_packing.pack_bits", None)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    digests = []
    monkeypatch.setattr(packed_cache, "_digest", digests.append)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert digests == []  # its new state is known


@pytest.mark.parametrize("seal", [b"", b"x", b"\xff", b"0 1 2 3"])
def test_without_its_seal_a_file_is_written_again(folder, seal):
    expected = load(folder)(INPUT)
    (path,) = packed_cache.packed_folder().glob("*.seal")
    path.write_bytes(seal)
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert len(path.read_bytes()) > 100


@pytest.mark.parametrize("place", ["pipe", "folder"])
def test_what_is_no_file_is_not_read_and_leaves_nothing(folder, place):
    expected = load(folder)(INPUT)
    (path,) = packed_cache.packed_folder().glob("*.panels")
    path.unlink()
    os.mkfifo(path) if place == "pipe" else path.mkdir()
    assert load(folder)(INPUT).tobytes() == expected.tobytes()
    assert not list(packed_cache.packed_folder().glob("*.tmp"))
