"""Adapters that replace, shift and rescale weights: by hand, switched, mixed, merged, saved; and other vocabularies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_adapters import CONFIG, KINDS, lm, trained

from bloomref import BloomBackbone, BloomCausalLM, InvalidInput, Unsupported
from bloomref.formats.adapters.peft_tensors import OTHERS
from bloomref.lora.adapter_files import describe_files
from bloomref.params import Params
from bloomref.reference.resizing import resized

TOKENS = {"token_ids": [[3, 1, 4, 1, 5, 9, 2]]}


def arrays_of(model: BloomCausalLM) -> dict[str, np.ndarray]:
    [adapter] = model.adapter_set.loaded.values()
    parts = {f"{key} {n}": getattr(part, n) for key, (part,) in adapter.parts.items() for n in ("a", "b")}
    return parts | {f"{key} {kind}": array for kind in OTHERS for key, array in getattr(adapter, kind).items()}


@pytest.mark.clause("LRA-2", "LRA-7", "LRA-10", "LRA-19", "LRA-20", "LRA-21", "LRA-22")
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_run_merged_switched_and_saved(kind: str, tied: bool, tmp_path: Path):
    config = CONFIG.replace(tie_word_embeddings=tied)
    model = lm(config)
    plain = model(TOKENS)
    model.add_adapter(KINDS[kind])
    np.testing.assert_array_equal(model(TOKENS), plain)
    model.delete_adapter("default")

    model.load_adapter(trained(tmp_path / "adapter", KINDS[kind], config))
    run = model(TOKENS)
    assert np.abs(run - plain).max() > 1e-3
    config_of_merged, weights = model.adapter_set.merged()
    saved = BloomBackbone.from_params(config_of_merged, weights)
    model.merge_adapter()
    np.testing.assert_allclose(model(TOKENS), run, rtol=0, atol=1e-12 * np.abs(run).max())
    np.testing.assert_array_equal(BloomCausalLM(saved)(TOKENS), model(TOKENS))
    model.unmerge_adapter()
    np.testing.assert_array_equal(model(TOKENS), run)

    model.save_adapter(tmp_path / "copy")
    again = lm(config)
    again.load_adapter(tmp_path / "copy")
    np.testing.assert_array_equal(again(TOKENS), run)
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(arrays_of(again)[name], array)
    model.set_adapter(None)
    np.testing.assert_array_equal(model(TOKENS), plain)


def effective(model: BloomCausalLM) -> Params:
    return model.adapter_set.merged()[1]


@pytest.mark.clause("LRA-21", "LRA-5")
def test_dora_is_its_formula(tmp_path: Path):
    """Row i of the weight: m_i (W + s B A)_i / |(W + s B A)_i|; and a mix adds what each changes."""
    model = lm()
    weight = model.params.layers[0].attn_out_weight.reshape(12, 12)
    model.load_adapter(trained(tmp_path, {"use_dora": True, "target_modules": ["dense"], "r": 2, "lora_alpha": 6}))
    found = arrays_of(model)
    a, b, m = (found[f"h.0.self_attention.dense.weight {name}"] for name in ("a", "b", "magnitudes"))
    direction = weight + 3.0 * b @ a
    expected = m[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(effective(model).layers[0].attn_out_weight.reshape(12, 12), expected, rtol=1e-12)
    model.set_adapter({"default": 0.25})
    mixed = weight + 0.25 * (expected - weight)
    np.testing.assert_allclose(effective(model).layers[0].attn_out_weight.reshape(12, 12), mixed, rtol=1e-12)


@pytest.mark.clause("LRA-19", "LRA-20")
def test_a_tied_head_follows_or_stays(tmp_path: Path):
    base = lm().params.word_embedding
    for name, settings, follows in (
        ("saved", {"modules_to_save": ["word_embeddings"]}, False),
        ("rows", {"trainable_token_indices": [1, 5]}, True),
        ("tied", KINDS["a saved embedding and head, tied"], True),
    ):
        model = lm()
        model.load_adapter(trained(tmp_path / name, settings))
        params = effective(model)
        assert (params.lm_head is None) == follows
        if not follows:
            np.testing.assert_array_equal(params.lm_head, base)


@pytest.mark.clause("LRA-24")
def test_what_replaces_has_no_weight_and_no_rival(tmp_path: Path):
    model = lm()
    for name, ids in (("first", [1, 2]), ("second", [3]), ("third", [2])):
        model.load_adapter(trained(tmp_path / name, {"trainable_token_indices": ids}), name)
    model.set_adapter({"first": 1, "second": 1})
    assert np.abs(effective(model).word_embedding - model.adapter_set.base.word_embedding).any(axis=1).nonzero()[0].tolist() == [1, 2, 3]  # fmt: skip
    with pytest.raises(InvalidInput, match=r"weight of 'first': expected 1\.0"):
        model.set_adapter({"first": 0.5})
    with pytest.raises(InvalidInput, match="'first' and 'third'; activate one"):
        model.set_adapter({"first": 1, "third": 1})


@pytest.mark.clause("LRA-19")
def test_a_keras_file_holds_factors_alone(tmp_path: Path):
    model = lm()
    model.load_adapter(trained(tmp_path / "adapter", {"bias": "all"}))
    with pytest.raises(InvalidInput, match="low-rank factors alone"):
        model.save_adapter(tmp_path / "adapter.lora.h5", expand=True)


def test_an_initialisation_of_peft_alone_is_refused():
    with pytest.raises(Unsupported, match="True or 'gaussian'"):
        lm().add_adapter({"init_lora_weights": "pissa"})
    model = lm()
    model.add_adapter({"init_lora_weights": "gaussian", "r": 4})
    assert 0.1 < np.std(model.trainable_variables()["h.0.self_attention.query_key_value.lora_A.default.weight"]) < 0.4


# --- the vocabulary ----------------------------------------------------------------------------------------------


@pytest.mark.clause("LRA-23")
def test_an_adapter_of_a_larger_vocabulary_resizes_the_base(tmp_path: Path):
    large = CONFIG.replace(vocabulary_size=29)
    model = lm()
    before = model(TOKENS)
    rows = trained(tmp_path / "rows", {"trainable_token_indices": [1, 27]}, large)
    model.load_adapter(trained(tmp_path / "whole", {"modules_to_save": ["word_embeddings", "lm_head"]}, large))
    run = model({"token_ids": [[3, 1, 28]]})
    assert run.shape == (1, 3, 29)
    with pytest.raises(InvalidInput, match="'default', made for 29"):
        model.resize_token_embeddings(31)
    model.set_adapter(None)
    np.testing.assert_allclose(model(TOKENS)[..., :23], before, rtol=1e-12)
    assert model.generate([3, 1, 28], max_new_tokens=2)[:3] == [3, 1, 28]
    other = lm()
    other.load_adapter(rows)
    assert other.backbone.config.vocabulary_size == 28


@pytest.mark.clause("WGT-35")
@pytest.mark.parametrize("tied", [True, False])
def test_resizing(tied: bool):
    config = CONFIG.replace(tie_word_embeddings=tied, vocabulary_size=40)
    model = lm(config)
    before = model(TOKENS)
    model.resize_token_embeddings(41, pad_to_multiple_of=16)
    assert model.params.word_embedding.shape == (48, 12)
    for matrix in (model.params.word_embedding, model.params.lm_head):
        if matrix is not None:
            np.testing.assert_allclose(matrix[40:], np.tile(matrix[:40].mean(0), (8, 1)), rtol=0, atol=1e-3)
            assert len(np.unique(matrix[40:, 0])) == 8
    np.testing.assert_array_equal(model(TOKENS)[..., :40], before)
    model.resize_token_embeddings(40)
    np.testing.assert_array_equal(model(TOKENS), before)
    model.resize_token_embeddings(2000, mean_resizing=False, seed=1)
    new = model.params.word_embedding[40:]
    assert abs(new.std() / config.initializer_range - 1) < 0.05
    assert abs(new.mean()) < 0.05 * config.initializer_range
    model.resize_token_embeddings()
    assert model.backbone.config.vocabulary_size == 2000


@pytest.mark.clause("WGT-35")
def test_new_rows_are_the_mean_where_there_are_few_old_ones():
    params = resized(lm(CONFIG.replace(vocabulary_size=5)).params, 7)
    np.testing.assert_array_equal(params.word_embedding[5:], np.tile(params.word_embedding[:5].mean(0), (2, 1)))


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_bad_size_is_refused(size: Any):
    with pytest.raises(InvalidInput, match="new_num_tokens: expected an integer"):
        lm().resize_token_embeddings(size)


def test_the_config_says_what_was_replaced(tmp_path: Path):
    folder = trained(tmp_path, {"bias": "all", "modules_to_save": ["ln_f"]})
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (config["bias"], config["modules_to_save"]) == ("all", ["ln_f"])
    model = lm()
    model.load_adapter(folder)
    assert "ln_f.weight" in model.adapters["default"]["replaced"]
    facts = describe_files(folder)
    assert ("ln_f.weight" in facts["replaced"], facts["rank"], "dora" in facts) == (True, 8, False)
    assert facts["parameters"] == model.adapters["default"]["parameters"]
