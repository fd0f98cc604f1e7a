"""LoRA: the terms of adapters, exact results where the clauses require them, and refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import text_lm
from strategies import Float32Case, cases

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput
from bloomref.lora.adapter import DENSE_LAYERS
from bloomref.params import PROJECTIONS, LoraFactors, Source, count_params
from bloomref.reference import lora
from bloomref.reference.lora_ops import low_rank
from bloomref.reference.lora_vjp import low_rank_vjp

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
ALL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "word_embeddings")
TOKENS = {"token_ids": [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]]}
BATCH, TIME = 2, 5


def backbone(case: Float32Case, dtype: str = "float64") -> BloomBackbone:
    return BloomBackbone.from_params(case.config, case.params, dtype)


def inputs(case: Float32Case) -> dict[str, Any]:
    return {"token_ids": case.token_ids, "padding_mask": case.is_real}


def fill(model: Any, seed: int, scale: float = 0.3) -> None:
    """Random factors for the active adapters, B included."""
    rng = np.random.default_rng(seed)
    arrays = {name: scale * rng.standard_normal(x.shape) for name, x in model.trainable_variables().items()}
    model.assign_variables(arrays)


def adapted(
    case: Float32Case, kind: str, name: str = "default", seed: int = 0, model: BloomBackbone | None = None
) -> Any:
    model = model or backbone(case)
    if kind == "peft":
        model.add_adapter({"target_modules": ALL, "r": 3, "lora_alpha": 5}, name)
    else:
        model.enable_lora(2, list(DENSE_LAYERS), name=name)
    model.set_adapter(name)
    fill(model, seed)
    return model


KINDS = st.sampled_from(("peft", "keras"))
FORMS = ("qkv_weight", "attn_out_weight", "mlp_up_weight", "mlp_down_weight", "word_embedding", "query", "key", "value")


def one(form: str, rng: np.random.Generator, dropout: float = 0.0) -> tuple[LoraFactors, np.ndarray, tuple[int, ...]]:
    """Factors of one weight, an input for them, and the shape of their product."""
    size, r = CONFIG.sizes, 4
    if form in PROJECTIONS:
        a, b = rng.standard_normal((size["D"], size["H"], r)), rng.standard_normal((r, size["K"]))
        factors = LoraFactors("heads", "x", 0.7, dropout, a, b, PROJECTIONS.index(form))
        return factors, rng.standard_normal((BATCH, TIME, size["D"])), (BATCH, TIME, 3 * size["D"])
    if form == "word_embedding":
        a, b = rng.standard_normal((r, size["V"])), rng.standard_normal((size["D"], r))
        ids = rng.integers(0, size["V"], (BATCH, TIME))
        return LoraFactors("embedding", "x", 0.7, dropout, a, b), ids, (BATCH, TIME, size["D"])
    from bloomref.lora.adapter import ROWS

    rows, columns = ROWS[form].hf_shape(CONFIG)
    a, b = rng.standard_normal((r, columns)), rng.standard_normal((rows, r))
    factors = LoraFactors("matrix", "x", 0.7, dropout, a, b)
    return factors, rng.standard_normal((BATCH, TIME, columns)), (BATCH, TIME, rows)


@pytest.mark.clause("LRA-1", "LRA-3", "LRA-4")
@pytest.mark.parametrize("form", FORMS)
def test_what_is_added_is_the_product_with_what_is_merged(form: str):
    factors, x, shape = one(form, np.random.default_rng(1))
    y, delta = low_rank(factors, x), lora.delta_weight(factors)
    assert y.shape == shape
    expected = delta[x] if form == "word_embedding" else x @ delta.T
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.clause("LRA-3")
def test_rows_of_b_are_interleaved_by_head():
    """Trap 78: the row of head h, projection c and component k is (3 h + c) K + k, not (c H + h) K + k."""
    factors, _, _ = one("qkv_weight", np.random.default_rng(2))
    h, c, k = 1, 2, 3
    delta = lora.delta_weight(factors).reshape(3, 3, 4, 12)
    np.testing.assert_allclose(delta[h, c, k], 0.7 * factors.b[(3 * h + c) * 4 + k] @ factors.a)


@pytest.mark.clause("LRA-9")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("form", FORMS)
def test_vjp_is_the_derivative(form: str, dropout: float):
    """Central differences of sum(dy * low_rank(x)) along a random direction of each argument."""
    rng = np.random.default_rng(3)
    factors, x, shape = one(form, rng, dropout)
    dy = rng.standard_normal(shape)
    dx, da, db = low_rank_vjp(factors, x, dy, np.random.default_rng(7))

    def value(x: Any, **changes: Any) -> float:
        return float((dy * low_rank(replace(factors, **changes), x, np.random.default_rng(7))).sum())

    for name, gradient in (("a", da), ("b", db)):
        factor = getattr(factors, name)
        step = rng.standard_normal(factor.shape)
        slope = (value(x, **{name: factor + 1e-4 * step}) - value(x, **{name: factor - 1e-4 * step})) / 2e-4
        assert gradient.shape == factor.shape
        np.testing.assert_allclose((gradient * step).sum(), slope, rtol=1e-8)
    if form == "word_embedding":
        assert dx is None
        return
    step = rng.standard_normal(x.shape)
    slope = (value(x + 1e-4 * step) - value(x - 1e-4 * step)) / 2e-4
    np.testing.assert_allclose((dx * step).sum(), slope, rtol=1e-8)


@pytest.mark.clause("LRA-9")
def test_dropout_draws_what_vjp_draws_again():
    """Both draw the same numbers from the generator; without a generator there is no dropout."""
    factors, x, shape = one("mlp_up_weight", np.random.default_rng(4), dropout=0.5)
    first, second = np.random.default_rng(9), np.random.default_rng(9)
    y = low_rank(factors, x, first)
    low_rank_vjp(factors, x, np.ones(shape), second)
    assert first.bit_generator.state == second.bit_generator.state
    assert np.abs(y - low_rank(factors, x)).max() > 0.1


# --- properties of a whole model ---------------------------------------------------------------------------------


@given(cases(max_layers=2), KINDS)
@pytest.mark.clause("LRA-2")
def test_a_fresh_adapter_changes_no_bit(case: Float32Case, kind: str):
    model = backbone(case)
    before = model(inputs(case))
    if kind == "peft":
        try:
            model.add_adapter({"target_modules": "all-linear"})
        except InvalidInput:
            assert case.config.num_layers == 0
            return
    else:
        model.enable_lora(2)
    np.testing.assert_array_equal(model(inputs(case)), before)


@given(cases(), KINDS)
@pytest.mark.clause("LRA-6", "LRA-7")
def test_merged_is_added_and_unmerged_is_as_before(case: Float32Case, kind: str):
    lm = BloomCausalLM(backbone(case))
    base = {key: array.copy() for key, _, array in lm.backbone.params.named()}
    plain = lm(inputs(case))
    adapted(case, kind, model=lm)
    added = lm(inputs(case))
    lm.merge_adapter()
    merged = lm(inputs(case))
    real = case.is_real
    scale = max(1.0, float(np.abs(added[real]).max(initial=0.0)))
    assert np.abs(merged - added)[real].max(initial=0.0) <= 1e-9 * scale
    lm.unmerge_adapter()
    np.testing.assert_array_equal(lm(inputs(case)), added)
    lm.set_adapter(None)
    np.testing.assert_array_equal(lm(inputs(case)), plain)
    assert all(np.array_equal(array, base[key]) for key, _, array in lm.backbone.params.named())


@given(cases(), st.floats(-2, 2), st.floats(-2, 2))
@pytest.mark.clause("LRA-5")
def test_a_mix_is_the_weighted_sum(case: Float32Case, first: float, second: float):
    """What two adapters add to the weights is linear in their weights."""
    model = adapted(case, "keras", "one", 1)
    adapted(case, "peft", "two", 2, model)

    def delta(weights: Any) -> dict[str, np.ndarray]:
        model.set_adapter(weights)
        merged = {key: array for key, _, array in model.adapter_set.merged()[1].named()}
        return {key: merged[key] - array for key, _, array in model.params.named()}

    one, two, mix = delta("one"), delta("two"), delta({"one": first, "two": second})
    for key in one:
        np.testing.assert_allclose(mix[key], first * one[key] + second * two[key], rtol=0, atol=1e-12)


@pytest.mark.clause("LRA-2")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
def test_factors_keep_their_dtype(dtype: str):
    model = adapted(Float32Case(CONFIG), "peft", model=backbone(Float32Case(CONFIG), dtype))
    assert {array.dtype.name for array in model.trainable_variables().values()} == {"float32"}
    assert model(TOKENS).dtype == model.policy.compute_dtype


@pytest.mark.clause("LRA-4")
def test_the_embedding_and_the_head_part_when_merged():
    lm = BloomCausalLM(backbone(Float32Case(CONFIG)))
    lm.add_adapter({"target_modules": ["word_embeddings"]})
    fill(lm, 1)
    config, params = lm.adapter_set.merged()
    assert not config.tie_word_embeddings
    np.testing.assert_array_equal(params.lm_head, lm.backbone.params.word_embedding)
    assert np.abs(params.word_embedding - params.lm_head).max() > 0.1


def test_merged_weights_are_not_those_of_the_files():
    """A backend may cache prepared files (`Params.source`): merged weights must not be confused with them."""
    params = replace(Float32Case(CONFIG).params, source=Source("folder", "state"))
    factors, _, _ = one("mlp_up_weight", np.random.default_rng(1))
    adapted = lora.attach(params, {"h.0.mlp.dense_h_to_4h.weight": (factors,)})
    assert lora.merged(adapted).source is None
    assert lora.merged(adapted).layers[0].adapters == {}


@pytest.mark.clause("LRA-6")
def test_merging_rounds_to_the_variable_dtype_not_to_that_of_the_file():
    """Half-precision files under a float32 policy: adapted weights become float32, the others stay shared."""
    params = Float32Case(CONFIG).params.astype(np.dtype(np.float16))
    factors, _, _ = one("mlp_up_weight", np.random.default_rng(1))
    single = replace(factors, a=factors.a.astype(np.float32), b=factors.b.astype(np.float32))
    adapted = lora.attach(params, {"h.0.mlp.dense_h_to_4h.weight": (single,)})
    merged = lora.merged(adapted, np.dtype(np.float32)).layers[0]
    expected = params.layers[0].mlp_up_weight.astype(np.float32) + lora.delta_weight(single)
    np.testing.assert_array_equal(merged.mlp_up_weight, expected)
    assert merged.mlp_up_weight.dtype == np.float32
    assert merged.mlp_down_weight is params.layers[0].mlp_down_weight


@pytest.mark.clause("LRA-15")
def test_what_is_trainable_and_how_much():
    model = backbone(Float32Case(CONFIG))
    assert model.count_trainable_params() == model.count_params() == count_params(CONFIG)
    model.enable_lora(4)
    size = CONFIG.sizes
    expected = 2 * 2 * (size["D"] * size["H"] * 4 + 4 * size["K"])
    assert model.count_trainable_params() == expected
    assert model.count_params() == count_params(CONFIG)
    assert not any("bias" in name for name in model.trainable_variables())
    model.add_adapter(name="second")
    assert next(iter(model.trainable_variables())) == "h.0.self_attention.query_key_value.lora_A.second.weight"
    assert model.count_trainable_params() == 2 * (8 * 12 + 36 * 8)
    listed = model.adapters
    assert {name: facts["weight"] for name, facts in listed.items()} == {"default": 0.0, "second": 1.0}
    assert listed["default"] == {"weight": 0.0, "modules": ["query_key_value"], "ranks": [4], "parameters": expected}
    model.set_adapter(None)
    assert model.trainable_variables() == {}


@pytest.mark.clause("LRA-16")
def test_every_use_of_the_model_has_the_adapter():
    lm = text_lm(3)
    options = {"max_new_tokens": 8, "stop_token_ids": None}
    before = lm.generate("the is a", **options), lm.score("the is a"), lm.backbone.trace(TOKENS, "layers.1.mlp.up")
    adapted(Float32Case(lm.backbone.config), "peft", model=lm)
    after = lm.generate("the is a", **options), lm.score("the is a"), lm.backbone.trace(TOKENS, "layers.1.mlp.up")
    assert before[0] != after[0]
    assert before[1].log_likelihood != after[1].log_likelihood
    assert np.abs(before[2]["layers.1.mlp.up"] - after[2]["layers.1.mlp.up"]).max() > 0.1
    assert lm.generate("the is a", **options) == "the is a" + "".join(lm.stream("the is a", **options))
    lm.merge_adapter()
    assert lm.generate("the is a", **options) == after[0]


def test_dropout_of_an_adapter_acts_in_training_only():
    model = backbone(Float32Case(CONFIG))
    model.add_adapter({"lora_dropout": 0.5})
    fill(model, 1)
    plain = model(TOKENS)
    np.testing.assert_array_equal(plain, model(TOKENS))
    np.testing.assert_array_equal(model(TOKENS, training=True, seed=1), model(TOKENS, training=True, seed=1))
    assert np.abs(model(TOKENS, training=True, seed=1) - plain).max() > 1e-3


@pytest.mark.clause("LRA-16")
def test_a_saved_model_answers_as_the_adapted_one(tmp_path: Any):
    lm = BloomCausalLM(backbone(Float32Case(CONFIG)))
    adapted(Float32Case(CONFIG), "peft", model=lm)
    expected = lm(TOKENS)
    lm.save_to_preset(tmp_path)
    reloaded = BloomCausalLM.from_preset(tmp_path, dtype="float64")
    np.testing.assert_allclose(reloaded(TOKENS), expected, rtol=1e-11, atol=1e-11)


def test_weights_trained_after_a_look_at_the_adapters_are_saved():
    """The base has the weights that the engine has now, not those at the first use of an adapter."""
    from bloomref.runtime.engine import Engine

    model = backbone(Float32Case(CONFIG))
    model.trainable_variables()
    changed = model.params.map(lambda array: array + 1.0)
    model.engine = Engine(changed, model.config, model.policy)
    np.testing.assert_array_equal(model.adapter_set.merged()[1].word_embedding, changed.word_embedding)


# --- refusals ----------------------------------------------------------------------------------------------------

REFUSED = {
    "rank": lambda m: m.enable_lora(0),
    "rank of a float": lambda m: m.enable_lora(2.0),
    "unknown layer": lambda m: m.enable_lora(2, ["query_key_value"]),
    "a layer twice": lambda m: m.enable_lora(2, ["query_dense", "query_dense"]),
    "no layer": lambda m: m.enable_lora(2, []),
    "unknown module": lambda m: m.add_adapter({"target_modules": ["q_proj"]}),
    "unknown field": lambda m: m.add_adapter({"rank": 3}),
    "dropout of 1": lambda m: m.add_adapter({"lora_dropout": 1.0}),
    "alpha of nan": lambda m: m.add_adapter({"lora_alpha": float("nan")}),
    "name with a dot": lambda m: m.add_adapter(name="a.b"),
    "taken name": lambda m: (m.add_adapter(), m.add_adapter()),
    "unknown adapter": lambda m: m.set_adapter("none"),
    "weight": lambda m: (m.add_adapter(), m.set_adapter({"default": float("inf")})),
    "nothing to merge": lambda m: m.merge_adapter(),
    "merged": lambda m: (m.add_adapter(), m.merge_adapter(), m.set_adapter(None)),
    "nothing to save": lambda m: m.save_adapter("x"),
    "a name that does not end in .lora.h5": lambda m: (m.enable_lora(2), m.save_adapter("x.h5")),
    "heads as PEFT": lambda m: (m.enable_lora(2), m.save_adapter("x")),
    "a matrix as Keras": lambda m: (m.add_adapter(), m.save_adapter("x.lora.h5")),
    "an embedding as Keras": lambda m: (
        m.add_adapter({"target_modules": ["word_embeddings"]}),
        m.save_adapter("x.lora.h5", expand=True),
    ),
    "ranks as Keras": lambda m: (
        m.add_adapter({"target_modules": ["dense", "dense_h_to_4h"], "rank_pattern": {"dense": 2}}),
        m.save_adapter("x.lora.h5"),
    ),
}


@pytest.mark.clause("LRA-14", "LRA-17")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, tmp_path: Any, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="expected"):
        REFUSED[case](backbone(Float32Case(CONFIG)))
    assert list(tmp_path.iterdir()) == []


def test_deleted_and_again():
    model = backbone(Float32Case(CONFIG))
    plain = model(TOKENS)
    adapted(Float32Case(CONFIG), "peft", model=model)
    model.delete_adapter("default")
    np.testing.assert_array_equal(model(TOKENS), plain)
    model.enable_lora(1)
    assert list(model.adapters) == ["default"]
