"""KerasHub's pages on BLOOM, with `import bloomref as keras_hub`: their examples, and each statement about an argument.

The presets of the examples are a small model here; the calls are those of the pages.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_models import MERGES, small_tokenizer, small_vocabulary

import bloomref as keras_hub
from bloomref.presets import hub

SIZES: dict[str, Any] = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 32 * 4,
}
INPUTS = {
    "token_ids": np.ones(shape=(1, 12), dtype="int32"),
    "padding_mask": np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("presets") / "small"
    backbone = keras_hub.models.BloomBackbone(**SIZES | {"vocabulary_size": 300}, initializer_range=0.3, seed=5)
    keras_hub.models.BloomCausalLM(backbone, small_tokenizer()).save_to_preset(path)
    return path


@pytest.fixture
def small_presets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download gives the small folder. The repositories that were asked for are listed."""
    asked: list[str] = []

    def download(repo: str, *_: Any, **__: Any) -> Path:
        asked.append(repo)
        return folder

    monkeypatch.setattr(hub, "download", download)
    return asked


# --- the examples ------------------------------------------------------------------------------------------------


def test_the_examples_of_the_backbone(small_presets: list[str]):
    model = keras_hub.models.BloomBackbone.from_preset("bloom_560m_multi")
    assert model(INPUTS).shape == (1, 12, 32)
    assert small_presets == ["bigscience/bloom-560m"]
    model = keras_hub.models.BloomBackbone(
        vocabulary_size=10,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=32 * 4,
        dropout=0.0,
        layer_norm_epsilon=1e-5,
    )
    assert model(INPUTS).shape == (1, 12, 32)


def test_the_examples_of_from_preset(small_presets: list[str]):
    model = keras_hub.models.Backbone.from_preset("bloom_560m_multi")
    again = keras_hub.models.Backbone.from_preset("bloom_560m_multi", dtype="bfloat16", trainable=False)
    fresh = keras_hub.models.Backbone.from_preset("bloom_560m_multi", load_weights=False)
    assert {type(m) for m in (model, again, fresh)} == {keras_hub.models.BloomBackbone}
    assert all(isinstance(m, keras_hub.models.Backbone) for m in (model, again, fresh))
    assert again(INPUTS).dtype.name == "bfloat16"
    assert again.trainable_variables() == {}
    assert fresh.config == model.config
    assert not np.array_equal(fresh.params.word_embedding, model.params.word_embedding)
    assert len(small_presets) == 3


@pytest.mark.usefixtures("small_presets")
def test_the_examples_of_the_tokenizer():
    tokenizer = keras_hub.models.BloomTokenizer.from_preset("bloom_560m_multi")
    one = tokenizer("The quick brown fox jumped.")
    both = tokenizer(["The quick brown fox jumped.", "The fox slept."])
    assert both[0] == one
    assert tokenizer.detokenize(tokenizer("The quick brown fox jumped.")) == "The quick brown fox jumped."
    assert isinstance(keras_hub.models.Tokenizer.from_preset("bloom_560m_multi"), keras_hub.models.BloomTokenizer)
    assert isinstance(tokenizer, keras_hub.models.Tokenizer)
    assert keras_hub.models.BloomTokenizer(vocabulary=small_vocabulary(), merges=MERGES)("the cat")


def test_a_merge_without_its_halves_in_the_vocabulary_is_refused_as_by_keras_hub():
    """The page's own example of a vocabulary is such a one; KerasHub 0.32 refuses it with a ValueError, too."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "Ġquick": 4, "Ġfox": 5}
    with pytest.raises(ValueError, match="merges: expected pairs whose halves and union are in the vocabulary"):
        keras_hub.models.BloomTokenizer(vocabulary=vocabulary, merges=["Ġ q", "u i", "c k", "ui ck", "Ġq uick"])


@pytest.mark.usefixtures("small_presets")
def test_the_examples_of_generation():
    bloom_lm = keras_hub.models.BloomCausalLM.from_preset("bloom_560m_multi")
    assert bloom_lm.generate("I want to say", max_length=30).startswith("I want to say")
    assert len(bloom_lm.generate(["This is a", "Where are you"], max_length=30)) == 2
    assert isinstance(bloom_lm, keras_hub.models.CausalLM)
    assert isinstance(keras_hub.models.CausalLM.from_preset("bloom_560m_multi"), keras_hub.models.BloomCausalLM)


# --- the constructor's arguments ---------------------------------------------------------------------------------


def build(**changes: Any) -> Any:
    return keras_hub.models.BloomBackbone(**SIZES | {"initializer_range": 0.3} | changes)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_sizes_are_integers(name: str, value: object):
    with pytest.raises(keras_hub.InvalidInput, match=name):
        build(**{name: value})


def test_vocabulary_size_is_that_of_the_token_vocabulary():
    model = build(vocabulary_size=7)
    assert model.token_embedding.embeddings.shape == (7, 32)
    assert model({"token_ids": [[0, 6]]}).shape == (1, 2, 32)
    with pytest.raises(keras_hub.InvalidInput, match="token_ids"):
        model({"token_ids": [[7]]})


def test_num_layers_is_the_number_of_transformer_layers():
    assert [name for name in build(num_layers=3).trace(INPUTS) if name.endswith("mlp_block")] == [
        f"layers.{i}.mlp_block" for i in range(3)
    ]


def test_num_heads_is_the_number_of_attention_heads_and_divides_the_hidden_size():
    assert build(num_heads=8).trace(INPUTS, "layers.1.attention.query")["layers.1.attention.query"].shape == (
        1,
        8,
        12,
        4,
    )
    with pytest.raises(keras_hub.InvalidInput, match="hidden_dim: expected a multiple of num_heads=5, got 32"):
        build(num_heads=5)


def test_hidden_dim_is_the_width_of_embeddings_and_hidden_states():
    model = build(hidden_dim=48)
    assert model.token_embedding([[1, 2]]).shape == (1, 2, 48)
    assert model(INPUTS).shape == (1, 12, 48)


def test_intermediate_dim_is_the_output_dimension_of_the_first_dense_layer_of_the_mlp():
    model = build(intermediate_dim=20)
    assert model.trace(INPUTS, "layers.0.mlp.up")["layers.0.mlp.up"].shape == (1, 12, 20)
    assert model.params.layers[1].mlp_up_weight.shape == (20, 32)


def test_dropout_is_a_probability_that_acts_in_training():
    np.testing.assert_array_equal(build(dropout=0.5)(INPUTS), build()(INPUTS))
    assert not np.array_equal(build(dropout=0.5)(INPUTS, training=True, seed=1), build()(INPUTS))
    np.testing.assert_allclose(build(dropout=0.0)(INPUTS, training=True), build()(INPUTS), rtol=1e-5)
    for wrong in (-0.1, 1.5):
        with pytest.raises(keras_hub.InvalidInput, match="dropout"):
            build(dropout=wrong)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_layer_norm_epsilon_is_that_of_the_layer_norms(epsilon: float):
    model = build(layer_norm_epsilon=epsilon, dtype="float64")
    values = model.trace(INPUTS)
    for before, after in (("word_embedding", "embedding_norm"), ("layers.1.mlp_block", "final_norm")):
        x = values[before]
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        np.testing.assert_allclose(values[after], expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16", SimpleNamespace(name="mixed_float16")])
def test_dtype_is_a_name_or_a_policy_of_weights_and_results_while_softmax_and_norms_are_float32(dtype: Any):
    model = build(dtype=dtype)
    name = getattr(dtype, "name", dtype)
    assert model(INPUTS).dtype.name == name.removeprefix("mixed_")
    assert model.params.word_embedding.dtype.name == ("float32" if name.startswith("mixed_") else name)
    values = model.trace(INPUTS, "layers.0.attention.*")
    assert {values[f"layers.0.attention.{part}"].dtype.name for part in ("norm", "scores", "probabilities")} == {
        "float32"
    }


def test_the_constructor_initialises_at_random():
    assert not np.array_equal(build(seed=0).params.word_embedding, build(seed=1).params.word_embedding)


# --- from_preset -------------------------------------------------------------------------------------------------


def test_a_preset_is_a_name_a_handle_or_a_folder(folder: Path, small_presets: list[str]):
    for base in (keras_hub.models.Backbone, keras_hub.models.BloomBackbone):
        assert isinstance(base.from_preset(str(folder)), keras_hub.models.BloomBackbone)
        assert isinstance(base.from_preset("hf://user/bloom"), keras_hub.models.BloomBackbone)
    assert small_presets == ["user/bloom"] * 2
    with pytest.raises(keras_hub.InvalidInput, match=r"kaggle://user/model/framework/variation"):
        keras_hub.models.Backbone.from_preset("kaggle://user/bloom")


@pytest.mark.parametrize("preset", ["gemma_2b_en", "bert_base_en"])
def test_a_preset_of_another_architecture_is_refused_with_the_names_of_ours(preset: str):
    with pytest.raises(keras_hub.InvalidInput, match=f"got {preset}; .*bloom_560m_multi"):
        keras_hub.models.Backbone.from_preset(preset)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"registered_name": "keras_hub>GemmaBackbone", "config": {}}, "expected 'keras_hub>BloomBackbone'"),
        ({"model_type": "gpt2", "n_layer": 2}, "expected model_type 'bloom', got 'gpt2'"),
    ],
)
def test_the_class_is_inferred_from_the_config(tmp_path: Path, config: dict[str, Any], message: str):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(keras_hub.BadWeights, match=message):
        keras_hub.models.Backbone.from_preset(tmp_path)


@pytest.mark.parametrize("name", ["Backbone", "BloomBackbone", "CausalLM", "BloomCausalLM", "Tokenizer"])
def test_presets_are_listed_on_every_class(name: str):
    keys = getattr(keras_hub.models, name).presets.keys()
    assert {f"bloom{z}_{size}_multi" for z in ("", "z") for size in ("560m", "1.1b", "1.7b", "3b")} <= keys


# --- token_embedding and enable_lora -----------------------------------------------------------------------------


def test_token_embedding_embeds_ids_to_the_hidden_dimension():
    model = build()
    np.testing.assert_array_equal(model.token_embedding(INPUTS["token_ids"])[0, 0], model.params.word_embedding[1])


@pytest.mark.parametrize("explicit", [True, False])
def test_enable_lora_freezes_all_weights_and_adapts_query_and_value(explicit: bool):
    model = build()
    before = model(INPUTS)
    model.enable_lora(3, model.default_lora_layer_names()) if explicit else model.enable_lora(rank=3)
    names = model.trainable_variables()
    assert len(names) == 2 * 2 * 2  # layers, projections, factors
    assert all(".query.lora_kernel_" in name or ".value.lora_kernel_" in name for name in names)
    assert {3} == {min(array.shape) if array.ndim == 2 else array.shape[-1] for array in names.values()}
    np.testing.assert_array_equal(model(INPUTS), before)
