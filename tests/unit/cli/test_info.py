"""`bloomref info`: built-in presets without a network, adapters of any method, and remarks on odd folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import CONFIG

from bloomref.cli.app import run
from bloomref.formats.layouts import hf
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.params import init_params
from bloomref.presets.preset_registry import ADAPTERS, PRESETS

EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"


def info(capsys: pytest.CaptureFixture[str], model: object, *options: str) -> Any:
    assert run(["info", str(model), "--backend", "numpy", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["bloom_560m_multi", "bloom_176b_multi", "bloomz_7b_mt"])
def test_a_built_in_preset_needs_no_network(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomref.presets.hub._fetch", None)  # a call would fail
    report = info(capsys, name)
    assert report["parameters"] == PRESETS[name].parameters
    assert report["config"]["hidden_dim"] == PRESETS[name].config.hidden_dim
    assert report["source"].startswith(f"hf://{PRESETS[name].source}@")
    if name == "bloom_560m_multi":
        assert run(["info", name, "--backend", "numpy"]) == 0
        assert "known without reading hf://" in capsys.readouterr().out


# --- adapters ----------------------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "IA3": {"target_modules": ["query_key_value"], "feedforward_modules": []},
    "PROMPT_TUNING": {"num_virtual_tokens": 8, "prompt_tuning_init_text": "a\x1b[2Jb"},
    "LOHA": {"r": 8, "alpha": 4.0, "module_dropout": 0.1},
    "A_METHOD_TO_COME": {"anything": {"deep": list(range(1000))}},
}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_any_method_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    config = {"peft_type": method, "base_model_name_or_path": "a/b", "bias": "none", "revision": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | METHODS[method]))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"base_model.x.ia3_l": np.ones((3, 1), np.float32)})
    report = info(capsys, tmp_path)
    assert (report["method"], report["base_model_name_or_path"], report["parameters"]) == (method, "a/b", 3)
    assert report["tensors"] == 1
    assert method in report["cannot be run"]
    assert "revision" not in report
    assert run(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"{method} adapter, 3 parameters" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 600


def test_an_adapter_without_readable_weights_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ADAPTERS["bloom_tiny_udhr_facts"].folder / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02}.")
    report = info(capsys, tmp_path)
    assert report["parameters"] is None
    assert "a pickle" in report["cannot be run"] or "adapter_model.safetensors" in report["cannot be run"]


# --- odd folders -------------------------------------------------------------------------------------------------


def stored(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: np.array(file.view(name)) for name in file.entries}
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def index(folder: Path) -> None:
    hf.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
    file = folder / "model.safetensors.index.json"
    data = json.loads(file.read_text())
    data["weight_map"][HEAD] = data["weight_map"].pop("transformer.ln_f.bias")
    file.write_text(json.dumps(data))


def untied(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(data))


REMARKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing odd": (lambda _: None, ""),
    "heads": (
        lambda f: stored(f, lambda w: w.update({"score.weight": np.ones(2, np.float32)})),
        "a language model ignores it",
    ),
    "head twice": (lambda f: stored(f, lambda w: w.update({HEAD: w[EMBEDDING]})), "the tied LM head is stored twice"),
    "only the head": (
        lambda f: stored(f, lambda w: w.update({HEAD: w.pop(EMBEDDING)})),
        "the tied embedding is stored as lm_head.weight",
    ),
    "untied, no head": (untied, "only BloomBackbone loads it"),
    "a tensor too many": (
        lambda f: stored(f, lambda w: w.update({"transformer.h.0.mlp.x.bias": np.ones(2, np.float32)})),
        "unknown h.0.mlp.x.bias",
    ),
    "quantised": (
        lambda f: stored(f, lambda w: w.update({"transformer.h.0.mlp.x.SCB": np.ones(2, np.float32)})),
        "these weights are quantised (bitsandbytes int8)",
    ),
    "other weights": (lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x02"), "pytorch_model.bin (a PyTorch file"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "is not applied: `--adapter "),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "a git-lfs pointer": (
        lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "a git-lfs pointer",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REMARKS)
def test_info_says_what_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    folder = tmp_path / "model"
    hf.save(folder, CONFIG, init_params(CONFIG, 1))
    (folder / "tokenizer.json").write_text("{}")
    change, words = REMARKS[case]
    change(folder)
    remarks = info(capsys, folder)["remarks"]
    assert [words in remark for remark in remarks].count(True) == (1 if words else 0), remarks
    assert words or remarks == []
    if case == "heads":
        assert run(["info", str(folder), "--backend", "numpy"]) == 0
        assert (
            "remark: score.weight: the head of a BloomForSequenceClassification; a language model ignores it"
            in capsys.readouterr().out
        )


def test_info_compares_an_index_with_its_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index(tmp_path / "model")
    remarks = info(capsys, tmp_path / "model")["remarks"]
    assert any("names lm_head.weight, which no shard holds" in remark for remark in remarks)
    assert any("does not name transformer.ln_f.bias, which a shard holds" in remark for remark in remarks)
