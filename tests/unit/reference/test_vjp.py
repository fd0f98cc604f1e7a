"""Gradients of blocks and of the model against differences of the forward pass, and their laws.

transformers' are in tests/parity.
"""

import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from derivatives import is_derivative, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MASKS, Float32Case, cases, draw_params

from bloomref import BloomConfig
from bloomref.params import LoraFactors, Params, init_params, keys
from bloomref.reference import lora, loss, model, ops_vjp, tape, vjp

Array = np.ndarray[Any, Any]
seeds = st.integers(0, 2**32 - 1)
CONFIG = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
DROPPING = CONFIG.replace(attention_dropout=0.3, hidden_dropout=0.2)


def noise(case: Float32Case, centred: float) -> float:
    """The rounding error of one forward pass, `centred` where means are about zero.

    A layer norm subtracts the mean, and leaves the rounding error of the values before: as many times larger, measured
    in their spread, as the mean is.
    """
    return centred * (1 + case.offset)


# --- blocks, by central differences ------------------------------------------------------------------------------


def block_of(case: Float32Case, name: str, layer: Any = None) -> tape.Block:
    view = model.view(case.config, case.is_real, 0, np.dtype(np.float64))
    attention, mlp = vjp._blocks(case.params.layers[0] if layer is None else layer, case.config, view)
    return attention if name == "attention" else mlp


REVERSE = {"attention": vjp.attention_block_vjp, "mlp": vjp.mlp_block_vjp}
one_layer = cases(max_batch=2, max_time=6, max_layers=2).filter(lambda c: c.config.num_layers > 0 and c.gain < 3)
blocks = st.sampled_from(("attention", "mlp"))
rates = st.sampled_from((0.0, 0.4))


def reverse(case: Float32Case, name: str, x: Array, dy: Array, rng: Any) -> tuple[Array, dict[str, Array]]:
    """dx, and gradients by attribute."""
    into = vjp.Collector(lambda _: True, {}, {}).of_layer(0)
    record = tape.BlockRecord(block_of(case, name), x, rng, None)
    dx = REVERSE[name](case.params.layers[0], case.config, record, dy, into)
    return dx, {attribute: into.arrays[key] for attribute, key in into.keys.items() if key in into.arrays}


@pytest.mark.clause("GRD-3", "GRD-11")
@settings(max_examples=20)
@given(one_layer, blocks, rates, seeds)
def test_block(case, name, rate, seed):
    config = case.config.replace(attention_dropout=rate, hidden_dropout=rate)
    case, rng = replace(case, config=config), np.random.default_rng(seed) if rate else None
    shape = (case.batch, case.time, config.hidden_dim)
    x, dy = normal(seed, *shape), normal(seed + 1, *shape)
    dx, gradients = reverse(case, name, x, dy, rng)

    def agrees(gradient: Array, direction: Array, change: Callable[[float], Array]) -> bool:
        products = gradient * direction
        scale = np.abs(products).sum()
        return is_derivative(products.sum(), lambda h: (dy * change(h)).sum(), scale, 1e-7, noise(case, 3e-15))

    direction = normal(seed + 2, *shape)
    run = block_of(case, name)
    assert agrees(dx, direction, lambda h: run(x + h * direction, deepcopy(rng)))
    layer = case.params.layers[0]
    read = {a for a in vars(layer) if a != "adapters" and ("mlp" in a) == (name == "mlp")}
    assert set(gradients) == read
    for index, (attribute, gradient) in enumerate(gradients.items()):
        weight = getattr(layer, attribute)
        direction = normal(seed + 3 + index, *weight.shape)

        def changed(h: float, attribute: str = attribute, weight: Array = weight, v: Array = direction) -> Array:
            return block_of(case, name, replace(layer, **{attribute: weight + h * v}))(x, deepcopy(rng))

        assert gradient.shape == weight.shape
        assert agrees(gradient, direction, changed), attribute


@pytest.mark.clause("GRD-3")
@given(one_layer, blocks, seeds)
def test_a_block_is_linear_in_dy(case, name, seed):
    shape = (case.batch, case.time, case.config.hidden_dim)
    x, one, other = (normal(seed + i, *shape) for i in range(3))
    (dx, both), (dx1, first), (dx2, second) = (
        reverse(case, name, x, dy, None) for dy in (2 * one - 3 * other, one, other)
    )
    np.testing.assert_allclose(dx, 2 * dx1 - 3 * dx2, rtol=0, atol=1e-11 * (1 + np.abs(dx1).max()))
    for key, gradient in both.items():
        bound = 1e-11 * (1 + np.abs(first[key]).max() + np.abs(second[key]).max())
        np.testing.assert_allclose(gradient, 2 * first[key] - 3 * second[key], rtol=0, atol=bound)


# --- the whole model ---------------------------------------------------------------------------------------------


def forward_loss(case: Float32Case, params: Params, labels: Array, rng: Any = None) -> float:
    """The loss by loops over the positions, from the logits of the forward pass."""
    logits = model.logits(params, model.forward(params, case.config, case.token_ids, case.is_real, rng=rng))
    losses = []
    for b, t in np.ndindex(case.batch, case.time - 1):
        label = labels[b, t + 1]
        if case.is_real[b, t] and case.is_real[b, t + 1] and label != -100:
            row = logits[b, t]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
    return float(np.mean(losses)) if losses else 0.0


def draw_labels(case: Float32Case) -> Array:
    rng = np.random.default_rng(case.seed + 7)
    labels = rng.integers(0, case.config.vocabulary_size, case.token_ids.shape)
    labels[rng.random(labels.shape) < 0.3] = -100
    return labels


def gradients(case: Float32Case, labels: Array | None = None, **options: Any) -> vjp.LossGradients:
    return vjp.loss_and_gradients(case.params, case.config, case.token_ids, case.is_real, labels, **options)


def changed(params: Params, key: str, value: Array) -> Params:
    arrays = {k: array for k, _, array in params.named()} | {key: value}
    return Params.build(len(params.layers), params.lm_head is None, lambda _, k: arrays[k])


def same(one: vjp.LossGradients, other: vjp.LossGradients) -> bool:
    """The two results are equal bit for bit."""
    assert list(one.gradients) == list(other.gradients)
    pairs = [(one.gradients[key], other.gradients[key]) for key in one.gradients] + [(one.inputs, other.inputs)]
    return one.loss == other.loss and all(a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.clause("GRD-1", "GRD-2", "GRD-3", "GRD-4", "GRD-11")
@settings(max_examples=12)
@given(cases(max_batch=2, max_time=6).filter(lambda c: c.gain < 3 and c.config.hidden_dim > 2), rates)
def test_every_gradient_is_the_derivative_of_the_loss(case, rate):
    case = replace(case, config=case.config.replace(attention_dropout=rate, hidden_dropout=rate))
    labels, params = draw_labels(case), case.params

    def rng() -> Any:
        return np.random.default_rng(case.seed) if rate else None

    result = gradients(case, labels, rng=rng())
    assert result.loss == pytest.approx(forward_loss(case, params, labels, rng()), rel=1e-12)
    assert list(keys(case.config)) == [(key, w) for key, w in keys(case.config) if key in result.gradients]
    for index, (key, _, array) in enumerate(params.named()):
        direction, gradient = normal(case.seed + index, *array.shape), result.gradients[key]
        step = 1e-3 * min(1.0, float(np.abs(array).mean()))  # of an embedding of 2e-3, a millionth

        def along(h: float, key: str = key, array: Array = array, v: Array = direction) -> float:
            return forward_loss(case, changed(params, key, array + h * v), labels, rng())

        scale = np.abs(gradient * direction).sum()
        assert is_derivative((gradient * direction).sum(), along, scale, 1e-6, noise(case, 1e-14), step), key


@pytest.mark.clause("GRD-4")
@given(cases())
def test_gradients_have_the_keys_shapes_and_dtype_of_the_weights(case):
    result = gradients(case)
    assert {key: g.shape for key, g in result.gradients.items()} == {k: a.shape for k, _, a in case.params.named()}
    assert {g.dtype for g in result.gradients.values()} == {np.dtype(np.float64)}
    assert result.inputs.shape == (case.batch, case.time, case.config.hidden_dim)


@pytest.mark.clause("GRD-4")
@given(cases())
def test_a_tied_head_sums_both_uses(case):
    tied = replace(case, config=case.config.replace(tie_word_embeddings=True))
    config = tied.config.replace(tie_word_embeddings=False)
    params = replace(tied.params, lm_head=tied.params.word_embedding)
    apart = vjp.loss_and_gradients(params, config, case.token_ids, case.is_real).gradients
    together = gradients(tied).gradients
    both = apart.pop("word_embeddings.weight") + apart.pop("lm_head.weight")
    np.testing.assert_allclose(together.pop("word_embeddings.weight"), both, rtol=1e-12, atol=1e-15)
    assert all(np.array_equal(together[key], apart[key]) for key in together | apart)


# --- what counts -------------------------------------------------------------------------------------------------


@pytest.mark.clause("GRD-1")
def test_which_tokens_are_counted():
    ids = np.arange(1, 8)[None]
    real = np.array([[False, True, True, True, False, True, True]])
    none = [-100] * 7
    assert loss.targets(ids, real, None, None).tolist() == [[-100, 3, 4, -100, -100, 7, -100]]
    assert loss.targets(ids, real, np.array([[9, 9, -100, 8, 9, 9, 7]]), None).tolist() == [
        [-100, -100, 8, -100, -100, 7, -100]
    ]
    assert loss.targets(ids, real, None, np.array([[0, 0, 0, 1, 1, 1, 1]])).tolist() == [
        [-100, 3, -100, -100, -100, 7, -100]
    ]
    assert loss.targets(ids, ~real, None, None).tolist() == [none]


@pytest.mark.clause("GRD-1")
@given(cases(), seeds)
def test_what_is_not_counted_has_no_influence(case, seed):
    """A row whose labels are all ignored has no effect."""
    labels = draw_labels(case)
    more = np.random.default_rng(seed).integers(0, case.config.vocabulary_size, (1, case.time))
    alone = gradients(case, labels)
    ids, real = np.concatenate([case.token_ids, more]), np.concatenate([case.is_real, np.ones_like(more, bool)])
    ignored = np.concatenate([labels, np.full_like(more, -100)])
    beside = vjp.loss_and_gradients(case.params, case.config, ids, real, ignored)
    assert beside.counted == alone.counted
    assert beside.loss == pytest.approx(alone.loss, rel=1e-12)
    assert not beside.inputs[-1].any()
    assert_all_close(beside.gradients, alone.gradients)


def assert_all_close(actual: dict[str, Array], expected: dict[str, Array], tolerance: float = 1e-11) -> None:
    assert set(actual) == set(expected)
    for key, array in expected.items():
        largest = max(float(np.abs(array).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(actual[key], array, rtol=0, atol=tolerance * largest, err_msg=key)


@pytest.mark.clause("GRD-2")
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1), (2, 4)])
def test_where_nothing_counts_the_loss_and_all_gradients_are_zero(shape):
    params = init_params(CONFIG, 0)
    nothing = np.full(shape, -100)
    result = vjp.loss_and_gradients(params, CONFIG, np.ones(shape, int), np.ones(shape, bool), nothing)
    assert (result.loss, result.counted) == (0.0, 0)
    assert len(result.gradients) == len(list(keys(CONFIG)))
    assert not any(g.any() for g in result.gradients.values())


@pytest.mark.clause("GRD-3")
@given(cases(kinds=("real", "right")), st.integers(0, 8))
def test_later_positions_have_no_influence_on_an_earlier_loss(case, last):
    labels = case.token_ids.copy()
    labels[:, last + 1 :] = -100
    assert not gradients(case, labels).inputs[:, last:].any()


@pytest.mark.clause("GRD-12")
@given(cases(kinds=[kind for kind in MASKS if kind != "real"]), seeds)
def test_padding_has_no_influence(case, seed):
    result = gradients(case)
    other = np.random.default_rng(seed).integers(0, case.config.vocabulary_size, case.token_ids.shape)
    token_ids = np.where(case.is_real, case.token_ids, other)
    assert not result.inputs[~case.is_real].any()
    other = vjp.loss_and_gradients(case.params, case.config, token_ids, case.is_real)
    assert (result.loss, result.counted) == (other.loss, other.counted)
    assert np.array_equal(result.inputs, other.inputs)
    assert_all_close(result.gradients, other.gradients, 1e-14)  # zeros change the order of the embedding's sums


# --- documents ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("GRD-9")
@settings(max_examples=20)
@given(cases(kinds=("real", "left", "right", "holes"), max_time=8), seeds)
def test_documents_in_one_row_are_documents_in_rows_of_their_own(case, seed):
    starts = np.random.default_rng(seed).random((case.batch, case.time)) < 0.3
    document = np.cumsum(starts, axis=1)
    packed = gradients(case, document=document)
    counted, total, sums = 0, 0.0, {key: np.zeros_like(g) for key, g in packed.gradients.items()}
    for number in range(case.time + 1):  # each document separately: the others are padding
        result = vjp.loss_and_gradients(case.params, case.config, case.token_ids, case.is_real & (document == number))
        counted, total = counted + result.counted, total + result.loss * result.counted
        for key, gradient in result.gradients.items():
            sums[key] += gradient * result.counted
    assert packed.counted == counted
    assert packed.loss * counted == pytest.approx(total, rel=1e-11)
    assert_all_close({key: g * counted for key, g in packed.gradients.items()}, sums, 1e-10)


@pytest.mark.clause("GRD-9")
def test_a_document_may_stand_at_any_column():
    """ALiBi's distances are relative: three tokens packed after four others give the loss of three tokens."""
    params = draw_params(CONFIG, np.random.default_rng(0))
    ids, real = np.array([[1, 2, 3, 4, 5, 6, 7]]), np.ones((1, 7), bool)
    labels = np.where(np.arange(7) < 4, -100, ids)
    packed = vjp.loss_and_gradients(params, CONFIG, ids, real, labels, document=np.array([[0, 0, 0, 0, 1, 1, 1]]))
    alone = vjp.loss_and_gradients(params, CONFIG, ids[:, 4:], real[:, 4:])
    assert packed.loss == pytest.approx(alone.loss, rel=1e-12)
    assert_all_close(packed.gradients, alone.gradients)
    apart = vjp.loss_and_gradients(params, CONFIG, ids, real, labels)
    assert abs(apart.loss - alone.loss) > 1e-3


# --- frozen weights, checkpoints, parts of the head, dropout, dtypes ---------------------------------------------


@pytest.mark.clause("GRD-6")
@given(cases(), seeds)
def test_what_is_not_trainable_is_absent_and_the_rest_is_the_same(case, seed):
    rng = np.random.default_rng(seed)
    chosen = {key for key, _ in keys(case.config) if rng.random() < 0.3}
    result, everything = gradients(case, trainable=chosen.__contains__), gradients(case)
    assert set(result.gradients) == chosen
    assert all(result.gradients[key].tobytes() == everything.gradients[key].tobytes() for key in chosen)


@pytest.mark.clause("GRD-6")
def test_a_frozen_weight_costs_no_product(monkeypatch):
    case = Float32Case(CONFIG)
    trainable = "h.1.mlp.dense_h_to_4h.weight"
    products, inner = [], ops_vjp.linear_weight_vjp
    monkeypatch.setattr(vjp, "linear_weight_vjp", lambda x, dy: products.append(dy.shape) or inner(x, dy))
    monkeypatch.setattr(loss, "_add_product", lambda *_: pytest.fail("a frozen head"))
    monkeypatch.setattr(vjp, "add_rows", lambda *_: pytest.fail("a frozen embedding"))
    assert set(gradients(case, trainable=trainable.__eq__).gradients) == {trainable}
    assert products == [(2, 6, CONFIG.intermediate_dim)]


@pytest.mark.clause("GRD-7", "GRD-11")
@given(cases(), rates, seeds)
def test_recomputed_and_stored_intermediates_give_the_same_bits(case, rate, seed):
    case = replace(case, config=case.config.replace(attention_dropout=rate, hidden_dropout=rate))
    results = [gradients(case, rng=np.random.default_rng(seed), checkpoint=c) for c in (True, False)]
    assert same(*results)


WIDE = BloomConfig(vocabulary_size=64, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256)


def peak_bytes(config: BloomConfig, time: int, **options: Any) -> int:
    params, ids = init_params(config, 0), np.zeros((1, time), int)
    tracemalloc.start()
    try:
        vjp.loss_and_gradients(params, config, ids, np.ones_like(ids, bool), trainable=lambda _: False, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.clause("GRD-7")
def test_another_layer_takes_the_memory_of_its_blocks_inputs():
    time, more = 384, 6
    state = time * WIDE.hidden_dim * 4
    deep = WIDE.replace(num_layers=2 + more)
    grown = peak_bytes(deep, time) - peak_bytes(WIDE, time)
    assert grown < 1.2 * more * 2 * state
    retained = peak_bytes(deep, time, checkpoint=False) - peak_bytes(WIDE, time, checkpoint=False)
    assert retained > 8 * grown, "the measurement detects the memory that checkpointing saves"


@pytest.mark.clause("GRD-8")
def test_logits_of_all_positions_never_exist(monkeypatch):
    config = WIDE.replace(vocabulary_size=20_000, num_layers=0)
    logits = 64 * config.vocabulary_size * 4
    head = config.vocabulary_size * config.hidden_dim * 4
    assert peak_bytes(config, 65) > logits, "all of them are in one part"
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 8 * config.vocabulary_size * 4)
    assert peak_bytes(config, 65) < logits / 2 + head / 10


@pytest.mark.clause("GRD-8")
def test_a_part_of_bloom_s_logits_takes_less_than_256_mib():
    assert loss._LOGIT_BYTES == 256 * 2**20


@pytest.mark.clause("GRD-8")
@settings(max_examples=20)
@given(cases(), st.integers(1, 300), st.integers(1, 300))
def test_parts_add_up(case, logit_bytes, product_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_LOGIT_BYTES", logit_bytes)
        patch.setattr(loss, "_PRODUCT_BYTES", product_bytes)
        parts = gradients(case)
    whole = gradients(case)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert_all_close(parts.gradients, whole.gradients)


@pytest.mark.clause("GRD-11")
def test_the_generator_moves_on_as_in_the_forward_pass():
    case, (one, other) = Float32Case(DROPPING), (np.random.default_rng(5) for _ in range(2))
    gradients(case, rng=one)
    model.forward(case.params, case.config, case.token_ids, case.is_real, rng=other)
    assert one.random() == other.random()


@pytest.mark.clause("GRD-11")
def test_dropout_changes_the_gradients():
    case = Float32Case(DROPPING)
    one, again, other = (gradients(case, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    assert not same(one, gradients(case))


@pytest.mark.clause("GRD-5")
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_16_bit_weights_have_the_gradients_of_the_same_weights_in_float32(dtype):
    case = Float32Case(CONFIG, seed=3)
    narrow = case.params.astype(np.dtype(dtype))
    wide = narrow.astype(np.dtype(np.float32))
    result, expected = (
        vjp.loss_and_gradients(params, CONFIG, case.token_ids, case.is_real) for params in (narrow, wide)
    )
    assert same(result, expected)
    assert {g.dtype for g in result.gradients.values()} == {np.dtype(np.float32)}


@pytest.mark.clause("GRD-5")
@settings(max_examples=20)
@given(cases().filter(lambda case: case.config.hidden_dim > 2))
def test_float32_is_near_float64(case):
    exact = gradients(replace(case, gain=1.0, embedding_std=1.0))
    single = replace(case, gain=1.0, embedding_std=1.0).params.astype(np.dtype(np.float32))
    result = vjp.loss_and_gradients(single, case.config, case.token_ids, case.is_real)
    assert result.inputs.dtype == np.float32
    assert result.loss == pytest.approx(exact.loss, rel=1e-4, abs=1e-4)
    assert {g.dtype for g in result.gradients.values()} == {np.dtype(np.float32)}


# --- adapters ----------------------------------------------------------------------------------------------------

ADAPTED = ("qkv_weight", "attn_out_weight", "mlp_up_weight", "mlp_down_weight", "word_embedding")


def with_adapters(case: Float32Case, rate: float) -> Params:
    """One adapter on each weight of the table, and two of KerasHub's form on the first weight."""
    config, given = case.config, {}
    for index, (key, weight) in enumerate(keys(config)):
        if weight.attribute not in ADAPTED:
            continue
        m, n = weight.hf_shape(config)
        a, b = normal(case.seed + index, 2, n), normal(case.seed + index + 1, m, 2)
        if weight.attribute == "word_embedding":
            given[key] = (LoraFactors("embedding", "one", 0.5, 0.0, normal(index, 2, m), normal(index, n, 2)),)
            continue
        given[key] = (LoraFactors("matrix", "one", 0.1, rate, a, b),)
        if weight.attribute == "qkv_weight":
            a, b = normal(index, config.hidden_dim, config.num_heads, 2), normal(index + 1, 2, config.head_dim)
            given[key] += tuple(LoraFactors("heads", "two", 0.1, rate, a, b, projection) for projection in (0, 2))
    return lora.attach(case.params, given)


@pytest.mark.clause("GRD-3", "GRD-6", "GRD-11")
@settings(max_examples=7)
@given(
    cases(max_batch=2, max_time=5, kinds=("real", "left")).filter(
        lambda c: c.gain < 3 and c.embedding_std == 1 and c.config.hidden_dim > 2
    ),
    rates,
)
def test_adapters(case, rate):
    """Gradients of the factors and of all weights below them, with every kind of dropout."""
    case = replace(case, config=case.config.replace(attention_dropout=rate, hidden_dropout=rate))
    params, labels = with_adapters(case, rate), draw_labels(case)

    def rng() -> Any:
        return np.random.default_rng(case.seed) if rate else None

    result = vjp.loss_and_gradients(params, case.config, case.token_ids, case.is_real, labels, rng=rng())
    factors = lora.factors(params)
    assert result.loss == pytest.approx(forward_loss(case, params, labels, rng()), rel=1e-12)
    assert set(result.gradients) == {key for key, _ in keys(case.config)} | set(factors)
    for index, (key, factor) in enumerate(factors.items()):
        direction, gradient = normal(index, *factor.shape), result.gradients[key]

        def along(h: float, key: str = key, factor: Array = factor, v: Array = direction) -> float:
            return forward_loss(case, lora.with_factors(params, {key: factor + h * v}), labels, rng())

        scale = np.abs(gradient * direction).sum()
        assert is_derivative((gradient * direction).sum(), along, scale, 1e-6, noise(case, 3e-14)), key
    frozen = vjp.loss_and_gradients(
        params, case.config, case.token_ids, case.is_real, labels, rng=rng(), trainable=factors.__contains__
    )
    assert set(frozen.gradients) == set(factors)
    assert all(frozen.gradients[key].tobytes() == result.gradients[key].tobytes() for key in factors)
