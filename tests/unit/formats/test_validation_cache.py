"""The numbers of large files are validated once, and again when the files have changed."""

import os

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights
from bloomref.formats import validation_cache
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import init_params

CONFIG = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(validation_cache, "MIN_CACHED_BYTES", 0)
    hf.save(tmp_path / "model", CONFIG, init_params(CONFIG, 0))
    return tmp_path / "model"


def damage_without_a_trace(folder) -> None:
    """Write NaN over a weight in place: size, time and inode of the file stay as they are."""
    path = folder / hf.WEIGHTS
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.array([np.nan], np.float32).tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("read", ["params", "stored"])
def test_files_that_passed_are_not_read_through_again(folder, read):
    getattr(open_checkpoint(folder), read)(np.dtype(np.float32))
    damage_without_a_trace(folder)
    getattr(open_checkpoint(folder), read)(np.dtype(np.float32))


@pytest.mark.parametrize("read", ["params", "stored"])
def test_files_are_read_through_without_an_entry(folder, read):
    damage_without_a_trace(folder)
    with pytest.raises(BadWeights, match="expected finite numbers, got nan"):
        getattr(open_checkpoint(folder), read)(np.dtype(np.float32))


@pytest.mark.clause("WGT-7")
def test_a_changed_file_is_checked_again(folder):
    open_checkpoint(folder).params()
    bad = init_params(CONFIG, 0)
    bad.word_embedding[3, 2] = np.nan
    hf.save(folder, CONFIG, bad)
    with pytest.raises(BadWeights, match="word_embeddings"):
        open_checkpoint(folder).params()


def test_small_files_have_no_entry(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(validation_cache, "MIN_CACHED_BYTES", 1 << 20)
    open_checkpoint(folder).params()
    assert not (tmp_path / "cache").exists()


def test_without_a_cache_folder_files_are_read_through_each_time(folder, tmp_path):
    (tmp_path / "cache").touch()
    open_checkpoint(folder).params()
    damage_without_a_trace(folder)
    with pytest.raises(BadWeights, match="expected finite numbers, got nan"):
        open_checkpoint(folder).params()
