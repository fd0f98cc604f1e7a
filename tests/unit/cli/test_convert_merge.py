"""`bloomref convert BASE OUT --adapter A`: the written model equals the base with its adapters."""

import json
from pathlib import Path

import numpy as np
import pytest
from damage import CONFIG

from bloomref import BloomCausalLM, BloomForSequenceClassification, BloomForTokenClassification, LoraConfig
from bloomref.cli.app import run
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import Params, init_params

IDS = {"token_ids": [[3, 1, 4, 1, 5]]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    hf.save(folder, CONFIG, init_params(CONFIG, 1).astype(np.dtype(np.float16)))
    (folder / "LICENSE").write_text("as the base")
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters that change the same matrices and different ones."""
    folder = tmp_path_factory.mktemp("adapters")
    rng = np.random.default_rng(7)
    for name, targets in (("one", ("query_key_value", "dense")), ("two", ("query_key_value", "dense_h_to_4h"))):
        lm = BloomCausalLM.from_preset(base, dtype="float32")
        lm.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=targets))
        factors = {key: rng.normal(size=array.shape) for key, array in lm.trainable_variables().items()}
        lm.assign_variables(factors)
        lm.save_adapter(folder / name)
    return [str(folder / "one"), str(folder / "two")]


def params(folder: Path) -> Params:
    return open_checkpoint(folder).params()


def named(model: Params) -> dict[str, np.ndarray]:
    return {key: array for key, _, array in model.named()}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_merged_model_is_the_base_with_its_adapters(
    base: Path, adapters: list[str], tmp_path: Path, count: int, dtype: str
) -> None:
    chosen = adapters[:count]
    options = [word for path in chosen for word in ("--adapter", path)]
    assert run(["convert", str(base), str(tmp_path / "out"), *options, "--dtype", dtype]) == 0
    lm = BloomCausalLM.from_preset(base, dtype=dtype)
    for path in chosen:
        lm.load_adapter(path, Path(path).name)
    lm.set_adapter(dict.fromkeys(("one", "two")[:count], 1.0))
    merged = named(params(tmp_path / "out"))
    expected = named(lm.adapter_set.merged()[1])
    assert {key: array.tobytes() for key, array in merged.items()} == {k: a.tobytes() for k, a in expected.items()}
    assert merged["h.0.mlp.dense_4h_to_h.weight"].dtype == (np.float16 if dtype == "auto" else np.float32)
    logits = BloomCausalLM.from_preset(tmp_path / "out", dtype="float32").logits(IDS)
    if dtype == "float32":
        np.testing.assert_allclose(logits, lm.logits(IDS), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "out/LICENSE").exists()


def test_weights_without_an_adapter_keep_their_bits(base: Path, adapters: list[str], tmp_path: Path) -> None:
    assert run(["convert", str(base), str(tmp_path / "out"), "--adapter", adapters[0]]) == 0
    before, after = (named(params(folder)) for folder in (base, tmp_path / "out"))
    changed = {key.split(".", 2)[-1] for key in before if before[key].tobytes() != after[key].tobytes()}
    assert changed == {"self_attention.query_key_value.weight", "self_attention.dense.weight"}


def test_keras_and_json(base: Path, adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    out = tmp_path / "out"
    assert run(["convert", str(base), str(out), "--adapter", adapters[0], "--to", "keras", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layout"], report["dtype"], report["merged"]) == ("keras", "float16", [adapters[0]])
    assert open_checkpoint(out).layout == "keras"


def test_an_adapter_is_merged_into_a_classifier(
    base: Path, adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = BloomForSequenceClassification.from_preset(base, id2label={0: "a", 1: "b", 2: "c"}, dtype="float16")
    model.save_to_preset(tmp_path / "classifier")
    model.add_adapter(LoraConfig(r=2, target_modules=("dense",)))
    model.assign_variables({key: np.ones(x.shape) for key, x in model.trainable_variables().items()})
    model.save_adapter(tmp_path / "adapter")  # with the head
    for source in (tmp_path / "classifier", base):
        out = tmp_path / f"merged into {source.name}"
        assert run(["convert", str(source), str(out), "--adapter", str(tmp_path / "adapter")]) == 0
        merged = BloomForSequenceClassification.from_preset(out, dtype="auto")
        np.testing.assert_array_equal(merged.head.weight, model.head.weight)
        np.testing.assert_allclose(merged(IDS), model(IDS), rtol=0.02, atol=0.02)
    assert BloomForSequenceClassification.from_preset(tmp_path / "merged into classifier").labels == ("a", "b", "c")
    capsys.readouterr()
    arguments = [
        "convert",
        str(tmp_path / "classifier"),
        str(tmp_path / "x"),
        "--adapter",
        adapters[0],
        "--to",
        "keras",
    ]
    assert run(arguments) == 2
    assert "--to: expected hf for a BloomForSequenceClassification, got keras" in capsys.readouterr().err
    tagger = BloomForTokenClassification.from_preset(base, num_labels=2)
    tagger.save_to_preset(tmp_path / "tagger")
    assert run(["convert", str(tmp_path / "tagger"), str(tmp_path / "x"), "--adapter", str(tmp_path / "adapter")]) == 2
    assert "--adapter: expected heads of one kind, got score and classifier" in capsys.readouterr().err


def test_what_cannot_be_merged_is_refused(
    base: Path, adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run(["convert", "--from-pickle", str(base), out, "--adapter", adapters[0]]) == 2
    assert "convert the pickles first" in capsys.readouterr().err
    assert run(["convert", str(base), out, "--adapter", str(tmp_path / "nothing")]) == 2
    assert not Path(out).exists()
    assert run(["convert", str(base), str(base), "--adapter", adapters[0]]) == 2
    assert "--force" in capsys.readouterr().err
