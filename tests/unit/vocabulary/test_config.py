"""BloomConfig: its domain, and its two spellings on disk."""

import dataclasses
import json
import math

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.errors import BadWeights, InvalidInput

SIZES = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 20}
HF = {"vocab_size": 50, "hidden_size": 12, "n_layer": 2, "n_head": 3}

BAD = [
    ("vocabulary_size", 0),
    ("vocabulary_size", 50.0),
    ("vocabulary_size", True),
    ("vocabulary_size", "50"),
    ("vocabulary_size", None),
    ("num_layers", -1),
    ("num_layers", False),
    ("num_heads", 0),
    ("num_heads", -3),
    ("hidden_dim", 0),
    ("intermediate_dim", 0),
    ("hidden_dim", 13),
    ("hidden_dim", 2),
    ("attention_dropout", -0.1),
    ("attention_dropout", 1.0),
    ("hidden_dropout", 1.5),
    ("hidden_dropout", math.nan),
    ("hidden_dropout", "0.1"),
    ("hidden_dropout", True),
    ("layer_norm_epsilon", -1e-5),
    ("layer_norm_epsilon", 1.0),
    ("layer_norm_epsilon", math.nan),
    ("layer_norm_epsilon", None),
    ("initializer_range", -0.1),
    ("initializer_range", math.inf),
    ("tie_word_embeddings", 1),
    ("tie_word_embeddings", None),
    ("apply_residual_connection_post_layernorm", "false"),
    ("pad_token_id", -1),
    ("eos_token_id", 2.0),
    ("bos_token_id", True),
    ("bos_token_id", [1]),
    ("vocabulary_size", 2**31),
    ("num_layers", 2**16),
]


@pytest.mark.clause("CFG-1", "CFG-2", "CFG-4", "CFG-5", "CFG-6", "CFG-11")
@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value))
def test_values_outside_the_domain_are_refused(name, value):
    with pytest.raises(InvalidInput, match=rf"^{name}: expected .*, got ") as caught:
        BloomConfig(**SIZES | {name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.clause("CFG-1", "CFG-4", "CFG-5", "CFG-11")
@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 0},
        {"vocabulary_size": 1},
        {"num_heads": 12},
        {"intermediate_dim": 1},
        {"hidden_dim": np.int64(12)},
        {"attention_dropout": 0},
        {"hidden_dropout": 0.999},
        {"layer_norm_epsilon": 0.0},
        {"pad_token_id": None},
        {"eos_token_id": 0},
        {"bos_token_id": 0, "pad_token_id": 0},
        {"vocabulary_size": 2**31 - 1, "num_layers": 2**16 - 1},
        {"eos_token_id": (0, 11)},
    ],
    ids=repr,
)
def test_the_edges_of_the_domain_are_legal(change):
    assert BloomConfig(**SIZES | change).replace() == BloomConfig(**SIZES | change)


@pytest.mark.clause("CFG-4", "CFG-5", "CFG-6", "CFG-11")
def test_defaults():
    config = BloomConfig(**SIZES)
    assert (config.layer_norm_epsilon, config.initializer_range) == (1e-5, 0.02)
    assert (config.attention_dropout, config.hidden_dropout) == (0.0, 0.0)
    assert (config.apply_residual_connection_post_layernorm, config.tie_word_embeddings) == (False, True)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)


@pytest.mark.clause("CFG-11")
@pytest.mark.parametrize(("stored", "ids"), [([2, 9], (2, 9)), ([2], (2,)), ([], ()), (7, (7,)), (None, ())], ids=repr)
def test_end_tokens_of_a_file_are_written_back_as_they_came(stored, ids):
    sizes = {"vocab_size": 10, "n_embed": 4, "n_layer": 1, "n_head": 2}
    config = BloomConfig.from_hf(sizes | {"eos_token_id": stored})
    assert config.end_token_ids == ids
    assert config.to_hf()["eos_token_id"] == stored
    assert hash(config) == hash(config.replace())


@pytest.mark.clause("CFG-11")
@pytest.mark.parametrize("value", [[2, -1], [2.0], [True], [None], [[2]]], ids=repr)
def test_a_list_of_end_tokens_has_ids_only(value):
    with pytest.raises(InvalidInput, match=r"^eos_token_id: expected an integer >= 0, got "):
        BloomConfig(**SIZES, eos_token_id=value)


@pytest.mark.clause("CFG-2")
@given(strategies.configs())
def test_head_width(config):
    assert config.head_dim * config.num_heads == config.hidden_dim
    assert config.sizes["K"] == config.head_dim
    assert config.sizes["C"] == 3


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BloomConfig(**SIZES).num_heads = 4


def test_keys_without_effect_do_not_change_the_hash():
    one, other = (BloomConfig(**SIZES, extra={"pretraining_tp": n}) for n in (1, 4))
    assert hash(one) == hash(other)


@pytest.mark.clause("GRD-1")
def test_the_ignored_label_is_minus_100():
    assert IGNORED_LABEL == -100


def test_replace_checks_again():
    with pytest.raises(InvalidInput, match="hidden_dim"):
        BloomConfig(**SIZES).replace(num_heads=5)


# --- null ----------------------------------------------------------------------------------------------------------

NULLS = (
    "attention_dropout", "hidden_dropout", "layer_norm_epsilon", "initializer_range", "tie_word_embeddings",
    "apply_residual_connection_post_layernorm", "intermediate_size", "n_embed", "num_hidden_layers", "model_type",
    "architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version", "use_cache",
)  # fmt: skip


@pytest.mark.clause("CFG-7")
@pytest.mark.parametrize("key", NULLS)
def test_null_is_absent(key: str) -> None:
    sizes = {"vocab_size": 10, "hidden_size": 4, "n_layer": 1, "n_head": 2}
    config = BloomConfig.from_hf(sizes | {key: None})
    assert config == BloomConfig.from_hf(sizes).replace(extra=config.extra)


@pytest.mark.clause("CFG-7")
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_null_is_no_such_token(key: str) -> None:
    config = BloomConfig.from_hf({"vocab_size": 10, "hidden_size": 4, "n_layer": 1, "n_head": 2, key: None})
    assert getattr(config, key) is None
    assert config.to_hf()[key] is None


@pytest.mark.clause("CFG-7")
@pytest.mark.parametrize("key", ["dropout", "layer_norm_epsilon"])
def test_null_is_absent_in_the_keras_layout(key: str) -> None:
    data = BloomConfig(**SIZES).to_keras()
    assert BloomConfig.from_keras(data | {key: None}) == BloomConfig.from_keras(
        {k: v for k, v in data.items() if k != key}
    )


# --- Hugging Face ------------------------------------------------------------------------------------------------


@pytest.mark.clause("CFG-7")
@pytest.mark.parametrize(
    "data",
    [
        HF,
        {"vocab_size": 50, "n_embed": 12, "num_hidden_layers": 2, "num_attention_heads": 3},
        HF | {"n_embed": 12, "hidden_size": 99},
        HF | {"num_hidden_layers": 99, "num_attention_heads": 99},
    ],
    ids=["new", "old", "both widths", "both counts"],
)
def test_both_spellings_of_the_sizes(data):
    config = BloomConfig.from_hf(data)
    assert (config.vocabulary_size, config.hidden_dim, config.num_layers, config.num_heads) == (50, 12, 2, 3)


@pytest.mark.clause("CFG-3")
def test_the_mlp_width_is_four_times_the_model_width_unless_stated():
    assert BloomConfig.from_hf(HF).intermediate_dim == 48
    assert BloomConfig.from_hf(HF | {"intermediate_size": 7}).intermediate_dim == 7


@pytest.mark.clause("CFG-8")
def test_inert_keys_are_written_back_and_change_nothing():
    inert = {"pretraining_tp": 4, "slow_but_exact": True, "seq_length": 2048, "offset_alibi": 100, "dtype": "float16"}
    config = BloomConfig.from_hf(HF | inert)
    assert config.replace(extra={}) == BloomConfig.from_hf(HF)
    assert inert.items() <= config.to_hf().items()


@pytest.mark.clause("CFG-7", "CFG-8")
@given(strategies.configs(), st.sampled_from([{}, {"pretraining_tp": 2, "torch_dtype": "float16"}]))
def test_hugging_face_round_trip(config, extra):
    config = config.replace(extra=extra, pad_token_id=None, attention_dropout=0.25)
    assert BloomConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(("times", "stored"), [(4, None), (3, 3)])
def test_the_keys_of_a_written_config_are_those_that_transformers_reads(times, stored):
    config = BloomConfig(**SIZES | {"intermediate_dim": times * SIZES["hidden_dim"]})
    data = config.to_hf()
    names = ("n_layer", "n_head", "hidden_size", "vocab_size")
    assert [data[name] for name in names] == [
        SIZES[name] for name in ("num_layers", "num_heads", "hidden_dim", "vocabulary_size")
    ]
    assert data.keys().isdisjoint(("num_hidden_layers", "num_attention_heads"))
    assert data.get("intermediate_size") == (stored and stored * SIZES["hidden_dim"])


@pytest.mark.clause("CFG-10")
@pytest.mark.parametrize("missing", HF)
def test_a_missing_size_is_refused_by_name(missing):
    with pytest.raises(BadWeights, match=missing):
        BloomConfig.from_hf({key: value for key, value in HF.items() if key != missing})


@pytest.mark.clause("CFG-10")
def test_another_model_is_refused():
    with pytest.raises(BadWeights, match="model_type 'bloom', got 'gpt2'"):
        BloomConfig.from_hf(HF | {"model_type": "gpt2"})


@pytest.mark.clause("CFG-1")
@pytest.mark.parametrize("value", ["12", 12.5, [12], {}])
def test_a_size_of_a_wrong_type_in_a_file_is_refused(value):
    with pytest.raises(InvalidInput, match="hidden_dim: expected an integer"):
        BloomConfig.from_hf(HF | {"hidden_size": value})


# --- Keras -------------------------------------------------------------------------------------------------------


@pytest.mark.clause("CFG-9")
def test_keras_round_trip():
    config = BloomConfig(**SIZES, attention_dropout=0.1, hidden_dropout=0.1, layer_norm_epsilon=1e-6)
    data = config.to_keras()
    assert data == SIZES | {"layer_norm_epsilon": 1e-6, "dropout": 0.1}
    assert BloomConfig.from_keras(data) == config
    assert BloomConfig.from_keras(SIZES) == BloomConfig(**SIZES)


@pytest.mark.clause("CFG-9")
@pytest.mark.parametrize(
    ("name", "value"),
    [("tie_word_embeddings", False), ("apply_residual_connection_post_layernorm", True), ("attention_dropout", 0.1)],
)
def test_what_the_keras_layout_cannot_say_is_refused(name, value):
    with pytest.raises(InvalidInput, match=f"^{name}: expected .* Keras layout.*format='hf'"):
        BloomConfig(**SIZES | {name: value}).to_keras()


@pytest.mark.clause("CFG-10")
@pytest.mark.parametrize("missing", SIZES)
def test_a_missing_size_in_a_keras_config(missing):
    with pytest.raises(BadWeights, match=missing):
        BloomConfig.from_keras({key: value for key, value in SIZES.items() if key != missing})


def test_to_dict_rebuilds_the_config():
    config = BloomConfig.from_hf(HF | {"seq_length": 5})
    assert set(config.to_dict()) == {f.name for f in dataclasses.fields(BloomConfig)}
    assert BloomConfig(**json.loads(json.dumps(config.to_dict()))) == config
