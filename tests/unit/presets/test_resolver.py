"""Resolution of preset names to local folders, without a network: requested downloads are recorded."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bloomref.config import BloomConfig
from bloomref.errors import InvalidInput, Unsupported
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import init_params
from bloomref.presets import hub
from bloomref.presets.preset_registry import ADAPTERS, PRESETS
from bloomref.presets.resolver import resolve, resolve_adapter

CONFIG = BloomConfig(vocabulary_size=9, num_layers=1, num_heads=2, hidden_dim=4, intermediate_dim=16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, bool]]:
    """Requested downloads: (repository, revision, with weights)."""
    calls: list[tuple[str, str, bool]] = []

    def download(repo: str, revision: str, *, weights: bool) -> Path:
        calls.append((repo, revision, weights))
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    return calls


@pytest.mark.clause("PRE-8")
def test_embedded_preset_needs_no_download(asked: list[Any]) -> None:
    folder = resolve("bloom_tiny_udhr")
    assert open_checkpoint(folder).config.num_heads == PRESETS["bloom_tiny_udhr"].config.num_heads
    assert asked == []


@pytest.mark.clause("PRE-4")
def test_built_in_names_and_hub_handles(asked: list[Any], tmp_path: Path) -> None:
    pinned = PRESETS["bloom_560m_multi"].revision
    assert resolve("bloom_560m_multi") == tmp_path
    resolve("bloom_560m_multi", revision="gs555750", weights=False)
    resolve("bloomz_176b_p3")
    resolve("hf://user/repo")
    resolve("hf://user/repo@v1.0", weights=False)
    resolve("hf://user/repo@v1.0", revision="v1.0")
    resolve("hf://user/repo", revision="abc")
    assert asked == [
        ("bigscience/bloom-560m", pinned, True),
        ("bigscience/bloom-560m", "gs555750", False),
        ("bigscience/bloomz-p3", "main", True),
        ("user/repo", "main", True),
        ("user/repo", "v1.0", False),
        ("user/repo", "v1.0", True),
        ("user/repo", "abc", True),
    ]


@pytest.mark.clause("PRE-4")
def test_folders(asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.save(tmp_path / "bloom_3b_multy", CONFIG, init_params(CONFIG, 0))
    for name in (tmp_path / "bloom_3b_multy", str(tmp_path / "bloom_3b_multy")):
        assert resolve(name) == tmp_path / "bloom_3b_multy"
    monkeypatch.chdir(tmp_path)
    assert resolve("bloom_3b_multy") == Path("bloom_3b_multy")  # a folder that exists is no misspelling
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/bloom_3b_multy") == tmp_path / "bloom_3b_multy"
    assert asked == []


def test_a_built_in_name_wins_over_a_folder(asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bloom_3b_multi").mkdir()
    resolve("bloom_3b_multi")
    assert asked
    assert resolve("./bloom_3b_multi") == Path("bloom_3b_multi")
    assert resolve(Path("bloom_3b_multi")) == Path("bloom_3b_multi")
    assert len(asked) == 1


@pytest.mark.clause("PRE-5")
@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("bloom_560m", "bloom_560m_multi"),
        ("BLOOM_3B_MULTI", "did you mean bloom_3b_multi"),
        ("bloomz-7b-mt", "bloomz_7b_mt"),
        ("gpt2", "The built-in presets are bloom_tiny_udhr"),
        ("bigscience/bloom-560m", "write hf://bigscience/bloom-560m"),
        ("./nowhere", "a folder that exists"),
        ("s3://bucket/model", "hf:// or kaggle://"),
        ("hf://user", "hf://user/repo"),
        ("hf:///repo", "hf://user/repo"),
        ("hf://user/repo/more", "hf://user/repo"),
        ("kaggle://user/model", "kaggle://user/model/framework/variation"),
        ("kaggle://a/b/c//1", "kaggle://user/model/framework/variation"),
        ("", "a preset's name"),
        (None, "a preset's name"),
        (5, "a preset's name"),
    ],
)
def test_other_names_are_refused(asked: list[Any], preset: object, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(preset)
    assert words in str(caught.value)
    assert str(caught.value).startswith("preset: ")
    assert asked == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match="the file"):
        resolve(tmp_path / "model.safetensors")


def test_revisions_are_for_the_hub(asked: list[Any], tmp_path: Path) -> None:
    for name in (tmp_path, "bloom_tiny_udhr", "kaggle://a/b/c/d"):
        with pytest.raises(InvalidInput, match="revision"):
            resolve(name, revision="main")
    with pytest.raises(InvalidInput, match="revision"):
        resolve("hf://user/repo@one", revision="two")
    assert asked == []


# --- Kaggle
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A kagglehub that returns `tmp_path` and records its calls."""
    module = ModuleType("kagglehub")
    module.calls = []

    def model_download(handle: str, path: str | None = None) -> str:
        module.calls.append((handle, path))
        return str(tmp_path / path) if path else str(tmp_path)

    module.model_download = model_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


@pytest.mark.clause("PRE-4")
def test_kaggle_handles(kaggle: Any, tmp_path: Path) -> None:
    assert resolve("kaggle://keras/bloom/keras/bloom_560m_multi/4") == tmp_path
    assert resolve("kaggle://keras/bloom/keras/bloom_560m_multi") == tmp_path
    assert kaggle.calls == [
        ("keras/bloom/keras/bloom_560m_multi/4", None),
        ("keras/bloom/keras/bloom_560m_multi", None),
    ]


def test_kaggle_without_weights_fetches_small_files_only(kaggle: Any, tmp_path: Path) -> None:
    assert resolve("kaggle://keras/bloom/keras/x", weights=False) == tmp_path
    paths = [path for _, path in kaggle.calls]
    assert "config.json" in paths
    assert not any(path is None or path.endswith(".h5") for path in paths)


@pytest.mark.parametrize(("status", "kind"), [(404, InvalidInput), (403, Unsupported), (None, Unsupported)])
def test_kaggle_errors(kaggle: Any, status: int | None, kind: type[Exception]) -> None:
    def fail(handle: str) -> str:
        error = OSError(f"refused {handle}\nmore lines")
        error.response = SimpleNamespace(status_code=status)
        raise error

    kaggle.model_download = fail
    with pytest.raises(kind, match=r"^kaggle://a/b/c/d: expected a download from Kaggle, got refused a/b/c/d; "):
        resolve("kaggle://a/b/c/d")


def test_kaggle_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(Unsupported, match=r"pip install bloomref\[kaggle\]"):
        resolve("kaggle://keras/bloom/keras/x")


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("PRE-9")
def test_handles_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "download_adapter", lambda *repository: asked.append(repository) or tmp_path)
    assert resolve_adapter("hf://user/repo@v2") == resolve_adapter("hf://user/repo") == tmp_path
    assert asked == [("user/repo", "v2"), ("user/repo", "main")]
    assert resolve_adapter("bloom_tiny_udhr_facts") == ADAPTERS["bloom_tiny_udhr_facts"].folder
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.lora.h5").touch()
    assert resolve_adapter("~/mine.lora.h5") == resolve_adapter(tmp_path / "mine.lora.h5") == tmp_path / "mine.lora.h5"


@pytest.mark.clause("PRE-9")
@pytest.mark.parametrize("name", ["hf://user", "no_such_adapter", Path("bloom_tiny_udhr_facts"), "", 3])
def test_no_adapter_of_this_name(name: Any) -> None:
    with pytest.raises(InvalidInput, match="adapter: expected "):
        resolve_adapter(name)


def test_built_in_adapters_are_adapters_of_built_in_presets() -> None:
    from bloomref.lora import adapter_files

    for adapter in ADAPTERS.values():
        assert adapter_files.is_adapter(adapter.folder)
        assert adapter.base in PRESETS
