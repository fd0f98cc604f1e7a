"""Large files are read through once, and again when they have changed."""

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights
from bloomref.formats import hf, validation_cache
from bloomref.formats.checkpoint import open_checkpoint
from bloomref.params import init_params

CONFIG = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(validation_cache, "MIN_CACHED_BYTES", 0)
    hf.save(tmp_path / "model", CONFIG, init_params(CONFIG, 0))
    return tmp_path / "model"


def count_reads(monkeypatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(hf, "check_finite", lambda _, name: seen.append(name))
    return seen


@pytest.mark.parametrize("read", ["params", "stored"])
def test_checked_once(folder, monkeypatch, read):
    seen = count_reads(monkeypatch)
    for _ in range(2):
        getattr(open_checkpoint(folder), read)(np.dtype(np.float32))
    assert len(seen) == 17


@pytest.mark.clause("WGT-7")
def test_a_changed_file_is_checked_again(folder):
    open_checkpoint(folder).params()
    bad = init_params(CONFIG, 0)
    bad.word_embedding[3, 2] = np.nan
    hf.save(folder, CONFIG, bad)
    with pytest.raises(BadWeights, match="word_embeddings"):
        open_checkpoint(folder).params()


def test_small_files_are_not_noted(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(validation_cache, "MIN_CACHED_BYTES", 1 << 20)
    open_checkpoint(folder).params()
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_noted_is_checked_each_time(folder, monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    seen = count_reads(monkeypatch)
    for _ in range(2):
        open_checkpoint(folder).params()
    assert len(seen) == 34
