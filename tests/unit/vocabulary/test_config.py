"""BloomConfig: its domain and its defaults."""

import dataclasses
import json
import math

import numpy as np
import pytest
import strategies
from hypothesis import given

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.errors import InvalidInput

SIZES = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 20}

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
def test_one_end_token_or_several(stored, ids):
    config = BloomConfig(**SIZES, eos_token_id=stored)
    assert config.end_token_ids == ids
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


def test_to_dict_rebuilds_the_config():
    config = BloomConfig(**SIZES, extra={"seq_length": 5})
    assert set(config.to_dict()) == {f.name for f in dataclasses.fields(BloomConfig)}
    assert BloomConfig(**json.loads(json.dumps(config.to_dict()))) == config
