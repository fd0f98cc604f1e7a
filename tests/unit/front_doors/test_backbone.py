"""BloomBackbone: the interface of KerasHub's BloomBackbone."""

import json

import ml_dtypes
import numpy as np
import pytest

from bloomref import BloomBackbone, InvalidInput
from bloomref.backbone import TokenEmbedding

SIZES = {"vocabulary_size": 10, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 128}
EXAMPLE = {"token_ids": np.ones((1, 12), "int32"), "padding_mask": np.array([[1] * 10 + [0] * 2])}


@pytest.fixture(scope="module")
def model() -> BloomBackbone:
    return BloomBackbone(**SIZES, initializer_range=0.3)


def test_the_page_of_keras_hub(model: BloomBackbone) -> None:
    positional = BloomBackbone(10, 2, 2, 32, 128, 0.0, 1e-5, "float32")
    assert positional(EXAMPLE).shape == model(EXAMPLE).shape == (1, 12, 32)
    assert positional(EXAMPLE).dtype == np.float32


@pytest.mark.clause("ATT-12", "MOD-1")
def test_without_a_mask_every_token_is_real(model: BloomBackbone) -> None:
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(model({"token_ids": ids}), model({"token_ids": ids, "padding_mask": [[1, 1, 1]]}))


@pytest.mark.clause("EMB-1", "ATT-11")
@pytest.mark.parametrize("integers", ["int8", "uint8", "int32", "uint64"])
@pytest.mark.parametrize("numbers", ["bool", "int32", "float32", "float64"])
def test_any_integer_ids_and_any_number_masks(model: BloomBackbone, integers: str, numbers: str) -> None:
    ids, mask = np.array([[1, 9, 3]], integers), np.array([[0, 1, 1]], numbers)
    expected = model({"token_ids": [[1, 9, 3]], "padding_mask": [[0, 1, 1]]})
    np.testing.assert_array_equal(model({"token_ids": ids, "padding_mask": mask}), expected)


def test_config_round_trip_is_json() -> None:
    first = BloomBackbone(
        **SIZES, dropout=0.25, dtype="mixed_bfloat16", name="mine", apply_residual_connection_post_layernorm=True
    )
    config = json.loads(json.dumps(first.get_config()))
    again = BloomBackbone.from_config(config)
    assert again.get_config() == config
    assert again.config == first.config


def test_the_attributes_of_the_page(model: BloomBackbone) -> None:
    assert [getattr(model, name) for name in SIZES] == list(SIZES.values())
    assert (model.dropout, model.layer_norm_epsilon, model.policy.name) == (0.0, 1e-5, "float32")
    assert not hasattr(model, "no_such_attribute")


@pytest.mark.clause("PRE-1")
def test_presets_of_the_page_are_listed_on_the_class() -> None:
    page = [f"bloom{z}_{size}_multi" for z in ("", "z") for size in ("560m", "1.1b", "1.7b", "3b")]
    assert set(page) <= set(BloomBackbone.presets)
    assert BloomBackbone.presets["bloom_560m_multi"]["parameters"] == 559_214_592


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", ml_dtypes.bfloat16, np.float16])
def test_hidden_states_have_the_compute_dtype(dtype: object) -> None:
    assert BloomBackbone(**SIZES, dtype=dtype)(EXAMPLE).dtype == np.dtype(dtype)


@pytest.mark.clause("NUM-1")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_mixed_policy_computes_what_the_pure_one_computes(name: str) -> None:
    pure, mixed = (BloomBackbone(**SIZES, dtype=dtype, initializer_range=0.3) for dtype in (name, f"mixed_{name}"))
    assert mixed.params.word_embedding.dtype == np.float32
    np.testing.assert_array_equal(pure(EXAMPLE), mixed(EXAMPLE))


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    one, same, other = (BloomBackbone(**SIZES, seed=seed).params.word_embedding for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.clause("MOD-7", "MOD-10", "MOD-12")
def test_dropout_only_in_training_and_repeatable_by_seed() -> None:
    model = BloomBackbone(**SIZES, dropout=0.5, initializer_range=0.3)
    quiet = BloomBackbone(**SIZES, dropout=0.0, initializer_range=0.3)
    np.testing.assert_array_equal(model(EXAMPLE), quiet(EXAMPLE))
    np.testing.assert_array_equal(model(EXAMPLE, training=True, seed=3), model(EXAMPLE, training=True, seed=3))
    assert not np.array_equal(model(EXAMPLE, training=True, seed=3), model(EXAMPLE, training=True, seed=4))
    assert not np.array_equal(model(EXAMPLE, training=True, seed=3), model(EXAMPLE))


def test_token_embedding_in_both_directions(model: BloomBackbone) -> None:
    embedding = model.token_embedding
    assert isinstance(embedding, TokenEmbedding)
    table = model.params.word_embedding
    np.testing.assert_array_equal(embedding([[1, 2]]), table[[[1, 2]]])
    np.testing.assert_array_equal(embedding(7), table[7])
    hidden = model(EXAMPLE)
    np.testing.assert_allclose(embedding(hidden, reverse=True), hidden @ table.T, rtol=1e-5, atol=1e-6)
    assert embedding(hidden, reverse=True).shape == (1, 12, 10)


def test_tied_logits_are_the_reversed_embedding(model: BloomBackbone) -> None:
    hidden = model(EXAMPLE)
    np.testing.assert_array_equal(model.engine.logits(hidden), model.token_embedding(hidden, reverse=True))


@pytest.mark.clause("MOD-6")
def test_an_untied_head_is_its_own_matrix() -> None:
    model = BloomBackbone(**SIZES, tie_word_embeddings=False, initializer_range=0.3)
    hidden = model(EXAMPLE)
    assert model.count_params() == BloomBackbone(**SIZES).count_params() + 10 * 32
    assert not np.allclose(model.engine.logits(hidden), model.token_embedding(hidden, reverse=True))


@pytest.mark.clause("MOD-8", "MOD-11")
def test_trace_selects_by_pattern_and_changes_nothing(model: BloomBackbone) -> None:
    seen = model.trace(EXAMPLE, "*final_norm")
    assert list(seen) == ["final_norm"]
    np.testing.assert_array_equal(seen["final_norm"], model(EXAMPLE))
    assert {"embedding_norm", "layers.1.attention.scores", "logits"} <= set(model.trace(EXAMPLE))


def test_count_params_counts_the_arrays(model: BloomBackbone) -> None:
    assert model.count_params() == sum(array.size for _, _, array in model.params.named())


def test_from_preset_without_weights_keeps_the_sizes_and_takes_overrides() -> None:
    tiny = BloomBackbone.from_preset("bloom_tiny_udhr", load_weights=False, num_layers=1, dropout=0.1)
    assert (tiny.num_layers, tiny.dropout) == (1, 0.1)
    assert tiny.hidden_dim == BloomBackbone.from_preset("bloom_tiny_udhr").hidden_dim


def test_from_preset_uses_the_stored_dtype_only_on_request() -> None:
    assert BloomBackbone.from_preset("bloom_tiny_udhr").policy.name == "float32"
    assert BloomBackbone.from_preset("bloom_tiny_udhr", dtype="auto").policy.name == "float16"


@pytest.mark.clause("PRE-4", "PRE-6")
@pytest.mark.parametrize("layout", ["hf", "keras"])
def test_save_and_load(tmp_path: object, model: BloomBackbone, layout: str) -> None:
    if layout == "keras":
        pytest.importorskip("h5py")
    model.save_to_preset(f"{tmp_path}/saved", format=layout)
    again = BloomBackbone.from_preset(f"{tmp_path}/saved")
    np.testing.assert_array_equal(again(EXAMPLE), model(EXAMPLE))


@pytest.mark.clause("EMB-6")
def test_empty_batches_and_empty_sequences(model: BloomBackbone) -> None:
    assert model({"token_ids": np.zeros((0, 5), int)}).shape == (0, 5, 32)
    assert model({"token_ids": np.zeros((2, 0), int)}).shape == (2, 0, 32)


def test_arguments_are_not_modified(model: BloomBackbone) -> None:
    ids, mask = np.array([[1, 2, 3]]), np.array([[0, 1, 1]])
    model({"token_ids": ids, "padding_mask": mask})
    np.testing.assert_array_equal(ids, [[1, 2, 3]])
    np.testing.assert_array_equal(mask, [[0, 1, 1]])


def test_a_misspelt_argument_is_answered_with_the_right_one() -> None:
    with pytest.raises(InvalidInput, match="did you mean trainable"):
        BloomBackbone(**SIZES, trainabel=True)
