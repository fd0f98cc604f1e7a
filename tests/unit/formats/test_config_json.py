"""The two spellings of a config on disk."""

import json
import subprocess
import sys

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, InvalidInput

SIZES = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 20}
HF = {"vocab_size": 50, "hidden_size": 12, "n_layer": 2, "n_head": 3}


def test_the_spellings_are_there_with_the_class_alone():
    code = f"from bloomref.config import BloomConfig; print(BloomConfig.from_hf({HF}).to_keras()['dropout'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0.0\n"


@pytest.mark.parametrize("data", [[["n_layer", 2]], "config.json", None], ids=["list", "path", "none"])
def test_what_is_no_dictionary_is_refused(data):
    for read in (BloomConfig.from_hf, BloomConfig.from_keras):
        with pytest.raises(InvalidInput, match="data: expected a dictionary"):
            read(data)


@pytest.mark.clause("CFG-11")
@pytest.mark.parametrize(("stored", "ids"), [([2, 9], (2, 9)), ([2], (2,)), ([], ()), (7, (7,)), (None, ())], ids=repr)
def test_end_tokens_of_a_file_are_written_back_as_they_came(stored, ids):
    sizes = {"vocab_size": 10, "n_embed": 4, "n_layer": 1, "n_head": 2}
    config = BloomConfig.from_hf(sizes | {"eos_token_id": stored})
    assert config.end_token_ids == ids
    assert config.to_hf()["eos_token_id"] == stored


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
