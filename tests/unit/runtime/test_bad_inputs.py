"""Every mistake has a documented error class, and a message that names the argument, the expectation and the value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bloomref import BloomBackbone, BloomConfig, InvalidInput
from bloomref.alibi import slopes
from bloomref.dtypes import dtype_policy, floating_dtype
from bloomref.errors import BadWeights, describe

SIZES: dict[str, Any] = {
    "vocabulary_size": 10,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
MODEL = BloomBackbone(**SIZES)
IDS = [[1, 2, 3]]
HF_CONFIG = {"vocab_size": 10, "n_layer": 1, "n_head": 2, "hidden_size": 8}


def build(**changes: Any) -> Callable[[], object]:
    return lambda: BloomBackbone(**(SIZES | changes))


def call(inputs: Any) -> Callable[[], object]:
    return lambda: MODEL(inputs)


def masked(mask: Any) -> Callable[[], object]:
    return lambda: MODEL({"token_ids": IDS, "padding_mask": mask})


# the call, the argument that the message names, and parts of the message
MISTAKES: dict[str, tuple[Callable[[], object], str, tuple[str, ...]]] = {
    "no vocabulary": (build(vocabulary_size=0), "vocabulary_size", (">= 1", "got 0")),
    "negative layers": (build(num_layers=-1), "num_layers", (">= 0", "got -1")),
    "no heads": (build(num_heads=0), "num_heads", (">= 1", "got 0")),
    "heads that do not divide": (build(num_heads=3), "hidden_dim", ("multiple of num_heads=3", "got 8")),
    "fractional heads": (build(num_heads=2.0), "num_heads", ("integer", "got 2.0")),
    "boolean layers": (build(num_layers=True), "num_layers", ("integer", "got True")),
    "a size as text": (build(hidden_dim="8"), "hidden_dim", ("integer", "'8'")),
    "a size as None": (build(intermediate_dim=None), "intermediate_dim", ("integer", "None")),
    "no MLP": (build(intermediate_dim=0), "intermediate_dim", (">= 1", "got 0")),
    "negative dropout": (build(dropout=-0.1), "attention_dropout", ("[0, 1)", "-0.1")),
    "certain dropout": (build(dropout=1.0), "attention_dropout", ("[0, 1)", "1.0")),
    "dropout that is no number": (build(dropout=float("nan")), "attention_dropout", ("[0, 1)", "nan")),
    "negative epsilon": (build(layer_norm_epsilon=-1e-5), "layer_norm_epsilon", ("[0, 1)", "-1e-05")),
    "epsilon as text": (build(layer_norm_epsilon="1e-5"), "layer_norm_epsilon", ("[0, 1)", "'1e-5'")),
    "infinite epsilon": (build(layer_norm_epsilon=float("inf")), "layer_norm_epsilon", ("[0, 1)", "inf")),
    "a flag as a number": (
        build(apply_residual_connection_post_layernorm=1),
        "apply_residual_connection_post_layernorm",
        ("True or False", "got 1"),
    ),
    "tying as text": (build(tie_word_embeddings="yes"), "tie_word_embeddings", ("True or False", "'yes'")),
    "negative end token": (build(eos_token_id=-1), "eos_token_id", (">= 0", "-1")),
    "unknown dtype": (build(dtype="float8"), "dtype", ("float64, float32", "'float8'")),
    "integer dtype": (build(dtype=np.int32), "dtype", ("float64, float32", "int32")),
    "unknown argument": (build(hidden_size=8), "hidden_size", ("argument of BloomBackbone",)),
    "infinite initializer": (build(initializer_range=float("inf")), "initializer_range", ("finite", "inf")),
    "ids without a dictionary": (call(IDS), "inputs", ("dictionary", "list", "{'token_ids': ids}")),
    "None": (call(None), "inputs", ("dictionary", "NoneType")),
    "no token_ids": (call({"padding_mask": [[1]]}), "inputs", ("token_ids", "padding_mask")),
    "another key": (call({"token_ids": IDS, "position_ids": IDS}), "inputs", ("position_ids",)),
    "one sequence": (call({"token_ids": [1, 2]}), "token_ids", ("(batch, time)", "(2,)", "[ids]")),
    "a scalar": (call({"token_ids": 3}), "token_ids", ("(batch, time)", "()")),
    "three axes": (call({"token_ids": [[[1]]]}), "token_ids", ("(batch, time)", "(1, 1, 1)")),
    "ragged rows": (call({"token_ids": [[1, 2], [3]]}), "token_ids", ("rectangular", "pad the rows")),
    "fractional ids": (call({"token_ids": [[1.0]]}), "token_ids", ("integers", "float64")),
    "boolean ids": (call({"token_ids": [[True]]}), "token_ids", ("integers", "bool")),
    "text as ids": (call({"token_ids": [["one"]]}), "token_ids", ("integers", "<U3")),
    "objects as ids": (call({"token_ids": [[None]]}), "token_ids", ("integers", "object")),
    "an id of -1": (call({"token_ids": [[-1]]}), "token_ids", ("[0, 10)", "-1")),
    "the first id too large": (call({"token_ids": [[10]]}), "token_ids", ("[0, 10)", "got 10")),
    "an id that wraps in 32 bits": (call({"token_ids": [[2**32 + 5]]}), "token_ids", ("[0, 10)", str(2**32 + 5))),
    "an id beyond 64 bits": (call({"token_ids": np.array([[2**64 - 1]], np.uint64)}), "token_ids", (str(2**64 - 1),)),
    "mask of another length": (masked([[1, 1]]), "padding_mask", ("(1, 3)", "(1, 2)")),
    "mask of another rank": (masked([1, 1, 1]), "padding_mask", ("(1, 3)", "(3,)")),
    "mask of another batch": (masked([[1, 1, 1]] * 2), "padding_mask", ("(1, 3)", "(2, 3)")),
    "mask with a two": (masked([[1, 2, 1]]), "padding_mask", ("0 (padding) and 1 (real)", "got 2")),
    "mask with a half": (masked([[1, 0.5, 1]]), "padding_mask", ("0 (padding) and 1 (real)", "0.5")),
    "additive mask": (masked([[0.0, -1e9, 0.0]]), "padding_mask", ("0 (padding) and 1 (real)", "-1000000000.0")),
    "mask with NaN": (masked([[1, float("nan"), 1]]), "padding_mask", ("0 (padding) and 1 (real)", "nan")),
    "mask as text": (masked([["1", "1", "1"]]), "padding_mask", ("numbers or bools", "<U1")),
    "embedding of a large id": (lambda: MODEL.token_embedding(11), "token_ids", ("[0, 10)", "11")),
    "reverse of another width": (
        lambda: MODEL.token_embedding(np.zeros((1, 9)), reverse=True),
        "hidden",
        ("(..., 8)", "(1, 9)"),
    ),
    "reverse of integers": (
        lambda: MODEL.token_embedding(np.zeros((1, 8), int), reverse=True),
        "hidden",
        ("floating", "int64"),
    ),
    "unknown layout": (lambda: MODEL.save_to_preset("x", format="onnx"), "format", ("'hf' or 'keras'", "'onnx'")),  # type: ignore[arg-type]
    "unknown preset": (lambda: BloomBackbone.from_preset("bloom_560_multi"), "preset", ("bloom_560m_multi",)),
    "a folder that is not there": (
        lambda: BloomBackbone.from_preset("./no/such/folder"),
        "preset",
        ("no/such/folder",),
    ),
    "slopes of no heads": (lambda: slopes(0), "num_heads", ("positive", "got 0")),
    "an object as dtype": (lambda: dtype_policy(object()), "dtype", ("float64, float32",)),
    "a policy as storage": (lambda: floating_dtype("mixed_float16"), "dtype", ("float64, float32", "mixed_float16")),
    "the post-layernorm residual in Keras": (
        lambda: BloomConfig(**SIZES, apply_residual_connection_post_layernorm=True).to_keras(),
        "apply_residual_connection_post_layernorm",
        ("Keras", "format='hf'"),
    ),
    "an untied head in Keras": (
        lambda: BloomConfig(**SIZES, tie_word_embeddings=False).to_keras(),
        "tie_word_embeddings",
        ("Keras", "format='hf'"),
    ),
    "a cache too small": (
        lambda: MODEL.engine.extend(MODEL.engine.new_cache(1, 2), 0, np.array(IDS)),
        "start",
        ("capacity of 2", "[0, 3)"),
    ),
    "a cache of another batch": (
        lambda: MODEL.engine.extend(MODEL.engine.new_cache(2, 3), 0, np.array(IDS)),
        "token_ids",
        ("2 rows", "got 1 rows"),
    ),
    "a negative position": (
        lambda: MODEL.engine.extend(MODEL.engine.new_cache(1, 4), -1, np.array(IDS)),
        "start",
        ("capacity of 4", "[-1, 2)"),
    ),
}


@pytest.mark.clause("EMB-1", "EMB-2", "ATT-11", "CFG-1")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake: str) -> None:
    action, argument, parts = MISTAKES[mistake]
    with pytest.raises(InvalidInput) as caught:
        action()
    message = str(caught.value)
    assert message.startswith(f"{argument}: expected "), message
    assert all(part in message for part in parts), message


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({}, "vocab_size"),
        ({key: value for key, value in HF_CONFIG.items() if key != "n_head"}, "n_head or num_attention_heads"),
    ],
)
def test_a_config_that_is_no_bloom(data: dict[str, Any], part: str) -> None:
    with pytest.raises(BadWeights, match=part):
        BloomConfig.from_hf(data)


def test_messages_stay_short() -> None:
    assert len(describe("x", "y", list(range(10_000)))) < 200
