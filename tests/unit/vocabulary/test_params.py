"""The table of weights, and parameters built from it."""

import numpy as np
import pytest
import strategies
from hypothesis import given

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights
from bloomref.params import (
    LAYER_WEIGHTS,
    LM_HEAD,
    MODEL_WEIGHTS,
    LoraFactors,
    Params,
    count_params,
    full_key,
    init_params,
    keys,
)

CONFIG = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
UNTIED = CONFIG.replace(tie_word_embeddings=False)
FLOAT64 = np.dtype(np.float64)


def stored(config: BloomConfig, params: Params) -> dict[str, np.ndarray]:
    return {key: array.reshape(weight.hf_shape(config)) for key, weight, array in params.named()}


def assert_equal(a: Params, b: Params) -> None:
    ours, theirs = list(a.named()), list(b.named())
    assert [(key, array.dtype) for key, _, array in ours] == [(key, array.dtype) for key, _, array in theirs]
    assert all(np.array_equal(x, y) for (_, _, x), (_, _, y) in zip(ours, theirs, strict=True))


@pytest.mark.clause("WGT-1")
def test_keys_and_shapes_as_in_a_real_checkpoint():
    """Literal keys and shapes of a BloomForCausalLM with V = 11, D = 12, F = 20."""
    shapes = {key: weight.hf_shape(UNTIED) for key, weight in keys(UNTIED) if not key.startswith("h.0.")}
    assert shapes == {
        "word_embeddings.weight": (11, 12),
        "word_embeddings_layernorm.weight": (12,),
        "word_embeddings_layernorm.bias": (12,),
        "h.1.input_layernorm.weight": (12,),
        "h.1.input_layernorm.bias": (12,),
        "h.1.self_attention.query_key_value.weight": (36, 12),
        "h.1.self_attention.query_key_value.bias": (36,),
        "h.1.self_attention.dense.weight": (12, 12),
        "h.1.self_attention.dense.bias": (12,),
        "h.1.post_attention_layernorm.weight": (12,),
        "h.1.post_attention_layernorm.bias": (12,),
        "h.1.mlp.dense_h_to_4h.weight": (20, 12),
        "h.1.mlp.dense_h_to_4h.bias": (20,),
        "h.1.mlp.dense_4h_to_h.weight": (12, 20),
        "h.1.mlp.dense_4h_to_h.bias": (12,),
        "ln_f.weight": (12,),
        "ln_f.bias": (12,),
        "lm_head.weight": (11, 12),
    }


@pytest.mark.clause("WGT-1")
def test_attributes_and_keras_paths_are_unique():
    table = [*MODEL_WEIGHTS, *LAYER_WEIGHTS]
    assert (
        len({w.attribute for w in table}) == len({w.hf_key for w in table}) == len({w.keras_path for w in table}) == 17
    )


@given(strategies.configs())
def test_every_spelling_of_a_shape_has_the_same_size(config):
    for weight in (*MODEL_WEIGHTS, *LAYER_WEIGHTS):
        parts = 3 if "{C}" in weight.keras_path else 1
        assert np.prod(weight.shape(config)) == np.prod(weight.hf_shape(config))
        assert np.prod(weight.shape(config)) == np.prod(weight.keras_shape(config)) * parts
    assert LM_HEAD.shape(config) == (config.vocabulary_size, config.hidden_dim)


@pytest.mark.clause("WGT-3")
def test_rows_of_the_fused_projection_are_head_then_query_key_value_then_channel():
    arrays = stored(CONFIG, init_params(CONFIG, 0, FLOAT64))
    name = "h.0.self_attention.query_key_value"
    arrays[f"{name}.weight"] = np.arange(36.0)[:, None] * np.ones(12)
    arrays[f"{name}.bias"] = np.arange(36.0)
    layer = Params.from_named(CONFIG, arrays).layers[0]
    for h, c, k in np.ndindex(3, 3, 4):
        assert layer.qkv_bias[h, c, k] == h * 12 + c * 4 + k
        assert (layer.qkv_weight[h, c, k] == h * 12 + c * 4 + k).all()


@pytest.mark.clause("WGT-1", "WGT-3")
@given(strategies.configs())
def test_named_and_from_named_are_inverse(config):
    params = strategies.draw_params(config, np.random.default_rng(0))
    assert_equal(Params.from_named(config, stored(config, params)), params)
    assert {key for key, _, _ in params.named()} == {key for key, _ in keys(config)}


@pytest.mark.clause("WGT-1", "WGT-5")
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_every_missing_weight_is_refused_by_name(config):
    arrays = stored(config, init_params(config, 0))
    for key in arrays:
        with pytest.raises(BadWeights, match=f"missing {key}$"):
            Params.from_named(config, {name: a for name, a in arrays.items() if name != key})


@pytest.mark.clause("WGT-5")
def test_every_misshapen_weight_is_refused_by_name():
    arrays = stored(CONFIG, init_params(CONFIG, 0))
    for key, array in arrays.items():
        for wrong in (
            array[None],
            array[:-1],
            array.T if array.ndim == 2 and array.shape[0] != array.shape[1] else array[1:],
        ):
            with pytest.raises(BadWeights, match=f"^{key}: expected shape"):
                Params.from_named(CONFIG, arrays | {key: wrong})


@pytest.mark.clause("WGT-5", "WGT-1")
def test_unknown_weights_are_refused_by_name():
    arrays = stored(CONFIG, init_params(CONFIG, 0))
    with pytest.raises(BadWeights, match=r"unknown lm_head\.weight$"):
        Params.from_named(CONFIG, arrays | {"lm_head.weight": arrays["word_embeddings.weight"]})
    extra = {f"h.2.{i}": np.zeros(1) for i in range(5)}
    with pytest.raises(BadWeights, match=r"unknown h\.2\.0, h\.2\.1, h\.2\.2 and 2 more"):
        Params.from_named(CONFIG, arrays | extra)


@pytest.mark.clause("PRE-2")
@pytest.mark.parametrize(
    ("layers", "width", "heads", "published"),
    [
        (24, 1024, 16, 559_214_592),
        (24, 1536, 16, 1_065_314_304),
        (24, 2048, 16, 1_722_408_960),
        (30, 2560, 32, 3_002_557_440),
        (30, 4096, 32, 7_069_016_064),
        (70, 14336, 112, 176_247_271_424),
    ],
)
def test_parameter_counts_of_the_published_models(layers, width, heads, published):
    config = BloomConfig(
        vocabulary_size=250880, num_layers=layers, num_heads=heads, hidden_dim=width, intermediate_dim=4 * width
    )
    assert count_params(config) == published


@given(strategies.configs())
def test_count_params_counts_the_arrays(config):
    params = init_params(config, 0)
    assert count_params(config) == sum(array.size for _, _, array in params.named())


def test_fresh_weights():
    config = CONFIG.replace(hidden_dim=96, initializer_range=0.05)
    params = init_params(config, 7)
    for key, weight, array in params.named():
        if key.endswith("bias"):
            assert not array.any()
        elif weight.axes == "D":
            assert (array == 1).all()
        else:
            assert array.std() == pytest.approx(0.05, rel=0.15)
            assert abs(array.mean()) < 0.05 * 5 / np.sqrt(array.size)
    assert_equal(init_params(config, 7), params)
    assert not np.array_equal(init_params(config, 8).word_embedding, params.word_embedding)


@pytest.mark.clause("NUM-1")
def test_astype_rounds_once_and_copies_nothing_in_vain():
    params = init_params(CONFIG, 0, FLOAT64)
    assert all(a is b for (_, _, a), (_, _, b) in zip(params.astype(FLOAT64).named(), params.named(), strict=True))
    half = params.astype(np.dtype(np.float16))
    for (_, _, wide), (_, _, narrow) in zip(params.named(), half.named(), strict=True):
        assert np.array_equal(narrow, wide.astype(np.float16))


def test_map_keeps_names_and_changes_every_array():
    params = strategies.draw_params(UNTIED, np.random.default_rng(0))
    doubled = params.map(lambda array: 2 * array)
    for (key, _, a), (again, _, b) in zip(params.named(), doubled.named(), strict=True):
        assert key == again
        assert np.array_equal(b, 2 * a)


@pytest.mark.clause("LRA-1")
@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [("matrix", (3, 8), (12, 3)), ("heads", (8, 2, 3), (3, 4)), ("embedding", (3, 50), (8, 3))],
)
def test_the_rank_is_the_narrow_axis_of_both_factors(kind, a, b):
    factors = LoraFactors(kind, "default", 1.0, 0.0, np.zeros(a), np.zeros(b))
    assert factors.rank == 3
    assert factors.projection == 0


def test_initial_weights_have_the_digits_of_their_dtype():
    config = BloomConfig(vocabulary_size=9, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=12)
    wide, single, half = (init_params(config, 0, np.dtype(name)).word_embedding for name in ("f8", "f4", "f2"))
    assert (wide.astype(np.float32) != wide).mean() > 0.9
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_every_name_in_a_checkpoint_of_a_language_model_has_the_prefix_but_the_head():
    assert full_key("h.0.mlp.dense_h_to_4h.bias") == "transformer.h.0.mlp.dense_h_to_4h.bias"
    assert full_key(LM_HEAD.hf_key) == "lm_head.weight"
