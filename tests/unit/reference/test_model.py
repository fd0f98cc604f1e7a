"""The model compared with loops that were written from the clauses, and its properties."""

import dataclasses

import ml_dtypes
import naive
import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Float32Case

from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype, dtype_policy
from bloomref.reference import model, trace
from bloomref.reference.cache import LayerCache
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch

CONFIG = BloomConfig(vocabulary_size=30, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=11)
FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
PADDED = ("left", "right", "holes", "padding row")


def hidden(case: Float32Case, token_ids=None, is_real=None, config=None) -> np.ndarray:
    ids = case.token_ids if token_ids is None else token_ids
    real = case.is_real if is_real is None else is_real
    return model.forward(case.params, config or case.config, ids, real)


def named(case: Float32Case) -> dict[str, np.ndarray]:
    return {key: array.reshape(weight.hf_shape(case.config)) for key, weight, array in case.params.named()}


def assert_close(got: np.ndarray, expected: np.ndarray, budget: float = 1e-12) -> None:
    """The largest error is within `budget` of the largest magnitude."""
    assert got.shape == expected.shape
    if got.size:
        assert np.abs(got - expected).max() <= budget * max(1.0, np.abs(expected).max())


# --- against the loops -------------------------------------------------------------------------------------------


@pytest.mark.clause("ATT-1", "ATT-2", "ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-9", "ATT-10")
@pytest.mark.clause("ALI-1", "ALI-2", "ALI-4", "EMB-3", "EMB-4", "EMB-5")
@pytest.mark.clause("MLP-1", "MLP-2", "MLP-3", "MLP-4", "MOD-2", "MOD-3", "MOD-4")
@given(strategies.cases(max_batch=2, max_time=6))
@settings(max_examples=60)
def test_every_hidden_state_equals_the_loops(case):
    config = case.config
    with trace.record() as values:
        hidden(case)
    states = [
        "embedding_norm",
        *(f"layers.{i}.{b}_block" for i in range(config.num_layers) for b in ("attention", "mlp")),
    ]
    expected = naive.hidden_states(
        named(case),
        case.token_ids,
        case.is_real,
        layers=config.num_layers,
        heads=config.num_heads,
        epsilon=config.layer_norm_epsilon,
        post_norm_residual=config.apply_residual_connection_post_layernorm,
    )
    for name, state in zip([*states, "final_norm"], expected, strict=True):
        assert_close(values[name], state)


@pytest.mark.clause("MOD-5", "MOD-6")
@given(strategies.cases(max_layers=0))
def test_logits_are_products_with_the_head(case):
    x = hidden(case)
    got = model.logits(case.params, x)
    head = case.params.word_embedding if case.config.tie_word_embeddings else case.params.lm_head
    for b, t, v in np.ndindex(got.shape):
        assert got[b, t, v] == pytest.approx(sum(map(float, x[b, t] * head[v])), abs=1e-12 * (1 + np.abs(head).max()))


@pytest.mark.clause("MOD-6")
def test_an_untied_head_does_not_touch_the_embedding():
    tied, untied = (Float32Case(CONFIG.replace(tie_word_embeddings=tie)).params for tie in (True, False))
    x = np.eye(15)[None]
    assert np.array_equal(model.logits(tied, x)[0].T, tied.word_embedding)
    assert np.array_equal(model.logits(untied, x)[0].T, untied.lm_head)
    assert not np.allclose(untied.lm_head, untied.word_embedding)


@pytest.mark.clause("MOD-3")
@pytest.mark.parametrize("flag", [False, True])
def test_the_residual_of_both_blocks(flag):
    """If the result of a block is set to zero, its output is the residual."""
    config = CONFIG.replace(apply_residual_connection_post_layernorm=flag)
    case, values = Float32Case(config), {}

    def silence(name, value):
        values[name] = value.copy()
        return np.zeros_like(value) if name.endswith(("attention.output", "mlp.output")) else value

    with trace.observe(silence):
        hidden(case)
    for i in range(2):
        before = values["embedding_norm"] if i == 0 else values["layers.0.mlp_block"]
        between = values[f"layers.{i}.attention_block"]
        assert np.array_equal(between, values[f"layers.{i}.attention.norm"] if flag else before)
        assert np.array_equal(values[f"layers.{i}.mlp_block"], values[f"layers.{i}.mlp.norm"] if flag else between)


@pytest.mark.clause("MOD-2", "MOD-4")
def test_without_layers_the_model_is_two_layer_norms():
    case = Float32Case(CONFIG.replace(num_layers=0))
    p = case.params
    x = naive.layer_norm(p.word_embedding[case.token_ids], p.ln_embedding_weight, p.ln_embedding_bias, 1e-5)
    assert_close(hidden(case), naive.layer_norm(x, p.ln_final_weight, p.ln_final_bias, 1e-5))


NORMS = {
    "embedding_norm": ("word_embedding", lambda p: (p.ln_embedding_weight, p.ln_embedding_bias)),
    "layers.1.attention.norm": ("layers.0.mlp_block", lambda p: (p.layers[1].ln_attn_weight, p.layers[1].ln_attn_bias)),
    "layers.1.mlp.norm": ("layers.1.attention_block", lambda p: (p.layers[1].ln_mlp_weight, p.layers[1].ln_mlp_bias)),
    "final_norm": ("layers.1.mlp_block", lambda p: (p.ln_final_weight, p.ln_final_bias)),
}


@pytest.mark.clause("EMB-4", "ATT-1", "MLP-1", "MOD-4")
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
@pytest.mark.parametrize("name", NORMS)
def test_every_layer_norm_takes_epsilon_from_the_config(name, epsilon):
    """Each norm's input is made small, so that epsilon decides its size."""
    before, weights_of = NORMS[name]
    case, values = Float32Case(CONFIG.replace(layer_norm_epsilon=epsilon)), {}

    def shrink(name, value):
        values[name] = value * 1e-3 if name == before else value.copy()
        return values[name]

    with trace.observe(shrink):
        hidden(case)
    assert_close(values[name], naive.layer_norm(values[before], *weights_of(case.params), epsilon))


# --- positions, masks, rows --------------------------------------------------------------------------------------


@pytest.mark.clause("ATT-5")
@given(st.data(), strategies.cases(max_time=9))
@settings(max_examples=50)
def test_a_token_changes_nothing_before_it(data, case):
    t = data.draw(st.integers(0, case.time - 1))
    ids = case.token_ids.copy()
    ids[:, t] = (ids[:, t] + 1) % case.config.vocabulary_size
    before, after = hidden(case), hidden(case, ids)
    assert before[:, :t].tobytes() == after[:, :t].tobytes()


@pytest.mark.clause("ATT-5")
def test_a_token_sees_itself_and_what_was_before():
    case = Float32Case(CONFIG, time=7, batch=1)
    before = hidden(case)
    for t in range(7):
        ids = case.token_ids.copy()
        ids[:, t] = (ids[:, t] + 1) % 30
        changed = np.abs(hidden(case, ids) - before).max(axis=(0, 2)) > 1e-9
        assert changed.tolist() == [False] * t + [True] * (7 - t)
    alone = case.params.layers[0].qkv_bias[:, 2].reshape(-1)  # with zero weights, every value is the bias
    layer = dataclasses.replace(case.params.layers[0], qkv_weight=np.zeros((3, 3, 5, 15)))
    with trace.record() as values:
        model.forward(dataclasses.replace(case.params, layers=(layer,)), CONFIG, case.token_ids, case.is_real)
    assert_close(values["layers.0.attention.context"], np.broadcast_to(alone, (1, 7, 15)))


@pytest.mark.clause("ATT-7", "ATT-8", "MOD-9")
@given(strategies.cases(max_time=9, kinds=PADDED))
@settings(max_examples=60)
def test_padding_is_finite_and_without_influence(case):
    ids = np.where(case.is_real, case.token_ids, (case.token_ids + 1) % case.config.vocabulary_size)
    a, b = hidden(case), hidden(case, ids)
    assert np.isfinite(a).all()
    assert a[case.is_real].tobytes() == b[case.is_real].tobytes()


@pytest.mark.clause("ATT-8", "NUM-5")
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize("kind", PADDED)
def test_large_scores_and_padding_give_no_nan(dtype, kind):
    """Scores of some thousands, under left padding: here masks that are added overflow in float16."""
    case = Float32Case(CONFIG, 3, time=9, kind=kind)
    loud = case.params.map(lambda a: 30 * a if a.shape == (3, 3, 5, 15) else a).astype(dtype)
    with trace.record(lambda name: name.endswith("scores")) as values:
        x = model.forward(loud, CONFIG, case.token_ids, case.is_real)
    assert np.abs(values["layers.0.attention.scores"]).max() > 500
    assert np.isfinite(x.astype(float)).all()


@pytest.mark.clause("ATT-8")
def test_a_padding_column_of_the_reference_sees_nothing():
    case = Float32Case(CONFIG, time=8, kind="holes", batch=3)
    with trace.record(lambda name: name.endswith(("probabilities", "context"))) as values:
        hidden(case)
    padding = ~case.is_real
    assert padding.any()
    assert not values["layers.1.attention.context"][padding].any()
    assert not values["layers.1.attention.probabilities"].swapaxes(1, 2)[padding].any()


@pytest.mark.clause("ALI-4", "ATT-7")
@given(strategies.cases(max_batch=1, kinds=("real",)), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=50)
def test_padding_left_and_right_changes_nothing(case, left, right):
    ids = np.pad(case.token_ids, ((0, 0), (left, right)))
    real = np.pad(case.is_real, ((0, 0), (left, right)))
    padded = hidden(case, ids, real)[:, left : left + case.time]
    assert_close(padded, hidden(case), 1e-11)


@pytest.mark.clause("ALI-4")
def test_a_hole_keeps_its_column():
    """Deleting the padded token moves the tokens before it nearer, and that is another text."""
    case = Float32Case(CONFIG, batch=1, time=6)
    real = np.array([[True, True, False, True, True, True]])
    with_hole = hidden(case, is_real=real)[:, [0, 1, 3, 4, 5]]
    deleted = hidden(case, case.token_ids[:, [0, 1, 3, 4, 5]], real[:, [0, 1, 3, 4, 5]])
    assert_close(with_hole[:, :2], deleted[:, :2])
    assert np.abs(with_hole - deleted)[:, 2:].max() > 1e-3


@pytest.mark.clause("MOD-9")
@given(strategies.cases(max_batch=3))
@settings(max_examples=40)
def test_a_row_of_a_batch_equals_the_row_alone(case):
    together = hidden(case)
    for i in range(case.batch):
        assert_close(together[i : i + 1], hidden(case, case.token_ids[i : i + 1], case.is_real[i : i + 1]))


@pytest.mark.clause("MOD-9")
def test_another_row_has_no_influence():
    case = Float32Case(CONFIG, batch=3, kind="left")
    ids, real = case.token_ids.copy(), case.is_real.copy()
    ids[1], real[1] = 7, ~real[1]
    a, b = hidden(case), hidden(case, ids, real)
    assert a[[0, 2]].tobytes() == b[[0, 2]].tobytes()


@pytest.mark.clause("EMB-6")
@pytest.mark.parametrize(("batch", "time"), [(0, 5), (2, 0), (0, 0)])
def test_empty_batches_and_sequences(batch, time):
    case = Float32Case(CONFIG)
    x = model.forward(case.params, CONFIG, np.zeros((batch, time), int), np.zeros((batch, time), bool))
    assert x.shape == (batch, time, 15)
    assert model.logits(case.params, x).shape == (batch, time, 30)


@pytest.mark.clause("EMB-5", "CFG-11")
def test_the_row_of_the_pad_token_is_an_ordinary_row():
    case = Float32Case(CONFIG.replace(pad_token_id=3))
    with trace.record() as values:
        hidden(case, np.array([[3, 3]]), np.ones((1, 2), bool))
    assert np.array_equal(values["word_embedding"][0], case.params.word_embedding[[3, 3]])


@pytest.mark.clause("CFG-8", "CFG-11")
def test_inert_keys_and_special_tokens_do_not_enter_the_model():
    case = Float32Case(CONFIG)
    extra = {"pretraining_tp": 4, "slow_but_exact": True, "seq_length": 2}
    other = CONFIG.replace(extra=extra, pad_token_id=None, bos_token_id=9, eos_token_id=8)
    assert hidden(case).tobytes() == hidden(case, config=other).tobytes()


# --- dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("NUM-3", "NUM-6", "MOD-5")
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, *HALVES], ids=str)
def test_dtypes_of_every_intermediate(dtype):
    case = Float32Case(CONFIG)
    params = case.params.astype(dtype)
    with trace.record() as values:
        model.logits(params, model.forward(params, CONFIG, case.token_ids, case.is_real))
    rounded = ("embedding_norm", "attention_block", "mlp_block", "final_norm")
    for name, value in values.items():
        expected = dtype if name.endswith(rounded) else accumulation_dtype(dtype)
        assert value.dtype == expected, name


def test_inputs_and_weights_are_left_alone():
    case = Float32Case(CONFIG, kind="holes")
    before = [a.copy() for _, _, a in case.params.named()], case.token_ids.copy(), case.is_real.copy()
    hidden(case)
    assert all(np.array_equal(a, b) for (_, _, a), b in zip(case.params.named(), before[0], strict=True))
    assert np.array_equal(case.token_ids, before[1])
    assert np.array_equal(case.is_real, before[2])


@pytest.mark.clause("NUM-2")
@given(strategies.cases(), st.sampled_from(HALVES))
@settings(max_examples=40)
def test_a_block_rounds_once_what_leaves_it(case, dtype):
    """Each half-precision block equals the float32 block on the widened input, rounded: its output, keys and values."""
    params, config = case.params.astype(dtype), case.config
    wide = params.astype(FLOAT32)
    view = model.view(config, case.is_real, 0, FLOAT32)
    x = model.embed(params, config, case.token_ids)
    assert_same_bits(x, model.embed(wide, config, case.token_ids).astype(dtype))

    def round_cached(name, value):
        return value.astype(dtype).astype(FLOAT32) if name.endswith((".key", ".value")) else value

    for layer, wide_layer in zip(params.layers, wide.layers, strict=True):
        narrow_cache = LayerCache.empty(config, case.batch, case.time, dtype)
        wide_cache = LayerCache.empty(config, case.batch, case.time, FLOAT32)
        attended = model.attention_block(layer, config, x, narrow_cache, view)
        with trace.observe(round_cached):
            expected = model.attention_block(wide_layer, config, x.astype(FLOAT32), wide_cache, view)
        assert_same_bits(attended, expected.astype(dtype))
        assert_same_bits(narrow_cache.keys, wide_cache.keys.astype(dtype))
        x = model.mlp_block(layer, config, attended)
        assert_same_bits(x, model.mlp_block(wide_layer, config, attended.astype(FLOAT32)).astype(dtype))
    final = model.final_norm(params, config, x)
    assert_same_bits(final, model.final_norm(wide, config, x.astype(FLOAT32)).astype(dtype))
    assert_same_bits(model.logits(params, final), model.logits(wide, final.astype(FLOAT32)))


@pytest.mark.clause("NUM-2")
def test_a_wide_array_is_not_copied():
    """Widening the head of a float32 model would otherwise cost its size once more."""
    for dtype in (FLOAT32, FLOAT64):
        x = np.zeros((1, 2, 3), dtype)
        assert model.widen(x) is x


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    assert a.tobytes() == b.tobytes()


@pytest.mark.clause("NUM-1")
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_mixed_policy_equals_the_half_policy_on_rounded_weights(half):
    case = Float32Case(CONFIG, kind="left")
    batch = TokenBatch(case.token_ids, case.is_real)
    weights = case.params.astype(FLOAT32)
    mixed = Engine(weights, CONFIG, dtype_policy(f"mixed_{half}"))
    pure = Engine(weights.astype(dtype_policy(half).compute_dtype), CONFIG, dtype_policy(half))
    assert_same_bits(mixed.hidden(batch), pure.hidden(batch))
    assert_same_bits(mixed.logits(mixed.hidden(batch)), pure.logits(pure.hidden(batch)))


@pytest.mark.clause("NUM-2", "ALI-5")
@pytest.mark.parametrize(("dtype", "budget"), [(FLOAT32, 2e-5), (HALVES[0], 2e-2), (HALVES[1], 1.5e-1)], ids=str)
def test_long_sequences_and_nine_heads_stay_near_float64(dtype, budget):
    """A bias in 16 bits is visible here: slopes are not powers of two, and there are more than 257 positions."""
    config = BloomConfig(vocabulary_size=60, num_layers=1, num_heads=9, hidden_dim=45, intermediate_dim=20)
    case = Float32Case(config, 1, batch=1, time=600, gain=0.5)
    params = case.params.astype(dtype)
    results, probabilities = [], []
    for weights in (params, params.astype(FLOAT64)):
        with trace.record(lambda name: name.endswith("probabilities")) as values:
            results.append(model.forward(weights, config, case.token_ids, case.is_real).astype(float))
        probabilities.append(values["layers.0.attention.probabilities"])
    total_variation = np.abs(probabilities[0] - probabilities[1]).sum(-1).max() / 2
    assert total_variation <= {FLOAT32: 1e-4, HALVES[0]: 3e-3, HALVES[1]: 2e-2}[dtype]
    assert np.abs(results[0] - results[1]).max() <= budget


# --- dropout -----------------------------------------------------------------------------------------------------


def trained(config: BloomConfig, seed: int | None) -> dict[str, np.ndarray]:
    case = Float32Case(config)
    rng = None if seed is None else np.random.default_rng(seed)
    with trace.record() as values:
        model.forward(case.params, config, case.token_ids, case.is_real, rng=rng)
    return dict(values)


@pytest.mark.clause("MOD-10")
def test_outside_training_rates_have_no_effect():
    noisy = CONFIG.replace(attention_dropout=0.5, hidden_dropout=0.5)
    assert_same_bits(trained(noisy, None)["final_norm"], trained(CONFIG, None)["final_norm"])
    assert_same_bits(trained(CONFIG, 1)["final_norm"], trained(CONFIG, None)["final_norm"])


@pytest.mark.clause("MOD-12")
def test_dropout_follows_its_seed():
    noisy = CONFIG.replace(attention_dropout=0.5, hidden_dropout=0.5)
    first, again, other = (trained(noisy, seed)["final_norm"] for seed in (1, 1, 2))
    assert_same_bits(first, again)
    assert not np.allclose(first, other)


@pytest.mark.clause("MOD-7")
def test_hidden_dropout_acts_on_the_output_of_both_blocks():
    values = trained(CONFIG.replace(hidden_dropout=0.25), 5)
    halves = [("embedding_norm", "layers.0.attention.output", "layers.0.attention_block")]
    halves += [("layers.0.attention_block", "layers.0.mlp.output", "layers.0.mlp_block")]
    for before, output, after in halves:
        added = values[after] - values[before]
        dropped = np.abs(added) < 1e-14
        assert 0 < dropped.sum() < dropped.size / 2
        np.testing.assert_allclose(added[~dropped], values[output][~dropped] / 0.75, rtol=0, atol=1e-13)
    plain = trained(CONFIG, None)  # nothing before the first block's output knows of it
    for name in ("embedding_norm", "layers.0.attention.probabilities", "layers.0.attention.context"):
        assert_same_bits(values[name], plain[name])


@pytest.mark.clause("MOD-7")
def test_attention_dropout_acts_on_the_probabilities_only():
    rate = 0.25
    values, plain = trained(CONFIG.replace(attention_dropout=rate), 5), trained(CONFIG, None)
    name = "layers.0.attention"
    assert_same_bits(values[f"{name}.probabilities"], plain[f"{name}.probabilities"])
    assert not np.allclose(values[f"{name}.context"], plain[f"{name}.context"])
    # the first query has one visible key, of probability 1: the whole context of a head is dropped, or scaled
    first = (values[f"{name}.context"] / plain[f"{name}.context"])[:, 0].reshape(2, 3, 5)
    assert np.allclose(first[..., 0], first[..., 4])
    assert all(np.isclose(factor, 0) or np.isclose(factor, 1 / (1 - rate)) for factor in first[..., 0].flat)
    added = values["layers.0.mlp_block"] - values["layers.0.attention_block"]
    np.testing.assert_allclose(added, values["layers.0.mlp.output"], rtol=0, atol=1e-13)


@pytest.mark.clause("MOD-7")
def test_dropout_keeps_the_expectation_of_a_block():
    config = CONFIG.replace(hidden_dropout=0.3)
    case = Float32Case(config, batch=1, time=2)
    x = np.random.default_rng(0).standard_normal((1, 2, 15))
    layer, rng = case.params.layers[0], np.random.default_rng(1)
    mean = np.mean([model.mlp_block(layer, config, x, rng) for _ in range(1000)], axis=0)
    plain = model.mlp_block(layer, config, x)
    assert np.abs(mean - plain).max() <= 6 * np.abs(plain - x).max() * np.sqrt(0.3 / 0.7 / 1000)
