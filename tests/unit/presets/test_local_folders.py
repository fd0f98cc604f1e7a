"""Paths that are not the folder of a model or adapter, and adapters that are given as models."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import CONFIG
from refusals import refusal

from bloomref import BloomBackbone, BloomCausalLM, BloomTokenizer
from bloomref.cli.app import run
from bloomref.errors import BloomrefError, InvalidInput, Unsupported
from bloomref.formats.layouts import hf
from bloomref.params import init_params
from bloomref.presets.adapted_models import Located, locate
from bloomref.presets.preset_registry import ADAPTERS, PRESETS
from bloomref.presets.resolver import resolve, resolve_adapter

FACTS = ADAPTERS["bloom_tiny_udhr_facts"].folder
TINY = PRESETS["bloom_tiny_udhr"].folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    hf.save(tmp_path / "run" / "checkpoint-500", CONFIG, init_params(CONFIG, 1))
    return tmp_path / "run" / "checkpoint-500"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    shutil.copytree(FACTS, tmp_path / "adapter" / "checkpoint-20")
    return tmp_path / "adapter" / "checkpoint-20"


def names_base(adapter: Path, base: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


# --- paths -------------------------------------------------------------------------------------------------------

PATHS: dict[str, tuple[str, str, type[BloomrefError]]] = {
    "a file of a model": (
        "run/checkpoint-500/model.safetensors",
        "pass its folder, {root}/run/checkpoint-500",
        InvalidInput,
    ),
    "a config": ("run/checkpoint-500/config.json", "pass its folder, {root}/run/checkpoint-500", InvalidInput),
    "a file of an adapter": (
        "adapter/checkpoint-20/adapter_model.safetensors",
        "`--adapter {root}/adapter/checkpoint-20 -m BASE`",
        InvalidInput,
    ),
    "a file of llama.cpp": ("bloom.gguf", "got a GGUF file", Unsupported),
    "another checkpoint": ("run/checkpoint-600", "did you mean {root}/run/checkpoint-500?", InvalidInput),
    "a letter too few": ("run/chekpoint-500", "did you mean {root}/run/checkpoint-500?", InvalidInput),
    "a wrong folder above": ("rum/checkpoint-500", "did you mean {root}/run?", InvalidInput),
    "nothing like it": ("run/zzz", "{root}/run has no 'zzz'", InvalidInput),
}


@pytest.mark.clause("PRE-5")
@pytest.mark.parametrize("case", PATHS)
@pytest.mark.usefixtures("model", "adapter")
def test_a_path_that_is_no_model_says_what_to_pass(tmp_path: Path, case: str) -> None:
    place, words, error = PATHS[case]
    (tmp_path / "bloom.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    message = refusal(error, lambda: resolve(str(tmp_path / place)))
    assert words.format(root=tmp_path) in message
    assert "bloom_560m_multi" not in message


ADAPTER_PATHS = {
    "a model": ("run/checkpoint-500", "`-m {root}/run/checkpoint-500`, without --adapter"),
    "its weights": ("adapter/checkpoint-20/adapter_model.safetensors", "pass its folder, {root}/adapter/checkpoint-20"),
    "a folder above": ("adapter", "pass the newest: {root}/adapter/checkpoint-20"),
    "another checkpoint": ("adapter/checkpoint-30", "did you mean {root}/adapter/checkpoint-20?"),
}


@pytest.mark.clause("PRE-5")
@pytest.mark.parametrize("page", ["", "/tree/main", "/blob/main/config.json"])
def test_the_address_of_a_page_of_the_hub_gives_its_handle(page: str) -> None:
    with pytest.raises(InvalidInput, match=r"; write hf://bigscience/bloom-560m$"):
        resolve(f"https://huggingface.co/bigscience/bloom-560m{page}")


@pytest.mark.clause("PRE-9")
@pytest.mark.parametrize("case", ADAPTER_PATHS)
@pytest.mark.usefixtures("model", "adapter")
def test_a_path_that_is_no_adapter_says_what_to_pass(tmp_path: Path, case: str) -> None:
    place, words = ADAPTER_PATHS[case]
    assert words.format(root=tmp_path) in refusal(InvalidInput, lambda: resolve_adapter(str(tmp_path / place)))


def test_a_preset_as_adapter_says_to_give_it_as_the_model() -> None:
    with pytest.raises(InvalidInput, match="`-m bloom_560m_multi`, without --adapter"):
        resolve_adapter("bloom_560m_multi")


# --- an adapter as the model -------------------------------------------------------------------------------------


@pytest.mark.clause("PRE-11")
@pytest.mark.parametrize("base", ["bloom_tiny_udhr", str(TINY), "../../base", "/of/training/base"])
def test_an_adapter_loads_with_its_base(tmp_path: Path, adapter: Path, base: str) -> None:
    names_base(adapter, base)
    if base.startswith("/of"):
        with pytest.raises(InvalidInput, match=f"an adapter of {base}; give both: `--adapter {adapter} -m BASE`"):
            locate(adapter)
        return
    (tmp_path / "base").symlink_to(TINY)
    assert locate(adapter).adapter == adapter
    assert os.path.samefile(locate(adapter).folder, TINY)


@pytest.mark.clause("PRE-11")
@pytest.mark.parametrize("name", ["bloom_tiny_udhr_facts", str(FACTS), FACTS])
def test_an_adapter_as_the_model_gives_what_base_and_adapter_give(name: str | Path) -> None:
    both = BloomCausalLM.from_preset("bloom_tiny_udhr")
    both.load_adapter(FACTS)
    lm = BloomCausalLM.from_preset(name)
    assert list(lm.adapters) == ["default"]
    assert (lm.logits({"token_ids": [[5, 6]]}) == both.logits({"token_ids": [[5, 6]]})).all()
    assert BloomTokenizer.from_preset(name).vocabulary_size() == lm.tokenizer.vocabulary_size()
    assert BloomBackbone.from_preset(name, load_weights=False).adapters == {}


@pytest.mark.clause("PRE-11")
@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("user/bloom-ft", "an adapter of user/bloom-ft; give both: `--adapter {adapter} -m hf://user/bloom-ft`"),
        (None, "names no base model; give both: `--adapter {adapter} -m BASE`"),
        ("", "names no base model; give both: `--adapter {adapter} -m BASE`"),
        (3, "names no base model; give both: `--adapter {adapter} -m BASE`"),
    ],
)
def test_an_adapter_without_a_base_says_how_to_give_both(adapter: Path, base: Any, words: str) -> None:
    names_base(adapter, base)
    assert words.format(adapter=adapter) in refusal(InvalidInput, lambda: BloomBackbone.from_preset(adapter))


def test_adapters_on_adapters_do_not_go_round(adapter: Path) -> None:
    names_base(adapter, str(adapter))
    with pytest.raises(InvalidInput, match="give both"):
        locate(adapter)


def test_the_tokenizer_of_an_adapter_comes_first(adapter: Path) -> None:
    assert locate(adapter).tokenizer_folder == TINY
    shutil.copy(TINY / "tokenizer.json", adapter)
    assert locate(adapter).tokenizer_folder == adapter
    assert Located(TINY).tokenizer_folder == TINY


def test_a_built_in_base_is_known_by_its_repository(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bloomref.presets.hub.download", lambda repo, *_, **__: asked.append(repo) or TINY)
    names_base(adapter, "bigscience/bloom-560m")
    assert locate(adapter) == Located(TINY, adapter)
    assert asked == ["bigscience/bloom-560m"]


def test_a_model_with_an_old_adapter_config_is_a_model(model: Path) -> None:
    shutil.copy(FACTS / "adapter_config.json", model)
    assert locate(model) == Located(model)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["finetune", "{text}", "-o", "{out}", "-m", "{adapter}"], "merge first: `bloomref convert BASE OUT "),
        (["finetune", "{text}", "-o", "{out}", "-m", "bloom_tiny_udhr_facts", "--full"], "a model without an adapter"),
    ],
)
def test_a_training_starts_from_a_model_without_an_adapter(
    tmp_path: Path, adapter: Path, capfd: pytest.CaptureFixture[str], command: list[str], words: str
) -> None:
    (tmp_path / "text.txt").write_text("Everyone has the right to life.")
    places = {"text": tmp_path / "text.txt", "out": tmp_path / "out", "adapter": adapter}
    assert run([part.format(**places) for part in command]) == 2
    assert words in capfd.readouterr().err


def test_convert_knows_the_base_that_an_adapter_names(tmp_path: Path, adapter: Path) -> None:
    pytest.importorskip("h5py")
    command = ["convert", str(adapter), str(tmp_path / "a.lora.h5"), "--to", "keras", "--expand"]
    assert run(command) == 0
    names_base(adapter, "/of/training/base")
    assert run([*command, "--force"]) == 2
    assert run([*command, "--force", "--base", "bloom_tiny_udhr"]) == 0
