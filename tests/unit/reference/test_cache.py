"""The cache, and calls that continue earlier ones."""

from itertools import pairwise

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.dtypes import dtype_policy
from bloomref.errors import InvalidInput
from bloomref.reference import model
from bloomref.reference.cache import Cache, LayerCache
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.runtime.inputs import TokenBatch

CONFIG = BloomConfig(vocabulary_size=30, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=11)
POLICIES = ("float64", "float32", "float16", "bfloat16")


def engine_of(case: strategies.Float32Case, policy: str = "float64") -> Engine:
    return Engine(case.params, case.config, dtype_policy(policy))


def whole(engine: Engine, case: strategies.Float32Case) -> np.ndarray:
    return engine.hidden(TokenBatch(case.token_ids, case.is_real))


def layers(cache: EngineCache) -> tuple[LayerCache, ...]:
    assert isinstance(cache.blocks, Cache)
    return cache.blocks.layers


def content(cache: EngineCache) -> list[bytes]:
    return [cache.is_real.tobytes()] + [a.tobytes() for layer in layers(cache) for a in (layer.keys, layer.values)]


def cuts(draw, time: int) -> list[int]:
    inner = draw(st.lists(st.integers(0, time), max_size=4))
    return [0, *sorted(inner), time]


@pytest.mark.clause("KVC-7", "KVC-2", "KVC-3")
@given(st.data(), strategies.cases(max_time=8))
@settings(max_examples=60)
def test_any_division_into_calls_gives_the_same_result(data, case):
    batch, time = case.token_ids.shape
    engine = engine_of(case)
    cache = engine.new_cache(batch, time + data.draw(st.integers(0, 3)))
    edges = cuts(data.draw, time)
    pieces = [engine.extend(cache, a, case.token_ids[:, a:b], case.is_real[:, a:b]) for a, b in pairwise(edges)]
    assert [piece.shape[1] for piece in pieces] == [b - a for a, b in pairwise(edges)]
    expected = whole(engine, case)
    np.testing.assert_allclose(
        np.concatenate(pieces, 1), expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max())
    )


@pytest.mark.clause("KVC-7")
@pytest.mark.parametrize("policy", POLICIES)
def test_token_by_token_in_every_dtype(policy):
    case = strategies.Float32Case(CONFIG, time=12, kind="left")
    engine = engine_of(case, policy)
    cache = engine.new_cache(2, 12)
    steps = [engine.extend(cache, t, case.token_ids[:, t : t + 1], case.is_real[:, t : t + 1]) for t in range(12)]
    got, expected = np.concatenate(steps, 1).astype(float), whole(engine, case).astype(float)
    epsilon = float(2.0 ** -{"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[policy])
    assert np.abs(got - expected).max() <= 40 * epsilon
    assert layers(cache)[0].keys.dtype == dtype_policy(policy).compute_dtype


@pytest.mark.clause("KVC-4", "KVC-1")
@given(st.data(), strategies.cases())
@settings(max_examples=40)
def test_repeating_a_call_changes_nothing(data, case):
    batch, time = case.token_ids.shape
    start = data.draw(st.integers(0, time))
    engine = engine_of(case)
    cache = engine.new_cache(batch, time + 2)
    engine.extend(cache, 0, case.token_ids[:, :start], case.is_real[:, :start])
    first = engine.extend(cache, start, case.token_ids[:, start:], case.is_real[:, start:])
    before = content(cache)
    again = engine.extend(cache, start, case.token_ids[:, start:], case.is_real[:, start:])
    assert first.tobytes() == again.tobytes()
    assert content(cache) == before


@pytest.mark.clause("KVC-1")
def test_a_call_writes_its_own_columns_only():
    case = strategies.Float32Case(CONFIG, time=3, kind="real")
    engine = engine_of(case)
    cache = engine.new_cache(2, 9)
    for layer in layers(cache):
        layer.keys[:], layer.values[:] = 7.0, 8.0
    engine.extend(cache, 4, case.token_ids)
    assert cache.is_real.tolist() == [[False] * 4 + [True] * 3 + [False] * 2] * 2
    for layer in layers(cache):
        for array, mark in ((layer.keys, 7.0), (layer.values, 8.0)):
            assert (array[:, :, :4] == mark).all()
            assert (array[:, :, 7:] == mark).all()
            assert not (array[:, :, 4:7] == mark).any()


@pytest.mark.clause("KVC-2")
def test_a_rewound_cache_has_no_trace_of_later_calls():
    case, other = (strategies.Float32Case(CONFIG, seed, time=8) for seed in (0, 1))
    engine = engine_of(case)
    fresh, used = engine.new_cache(2, 8), engine.new_cache(2, 8)
    engine.extend(used, 0, other.token_ids)
    for cache in (fresh, used):
        engine.extend(cache, 0, case.token_ids[:, :3])
    a, b = (engine.extend(cache, 3, case.token_ids[:, 3:5]) for cache in (fresh, used))
    assert a.tobytes() == b.tobytes()


@pytest.mark.clause("KVC-3")
@pytest.mark.parametrize("kind", ["left", "holes"])
def test_the_mask_of_the_prefix_is_remembered(kind):
    case = strategies.Float32Case(CONFIG, 5, batch=3, time=7, kind=kind)
    assert not case.is_real[:, :5].all()
    case.is_real[:, 5:] = True
    engine = engine_of(case)
    cache = engine.new_cache(3, 7)
    engine.extend(cache, 0, case.token_ids[:, :5], case.is_real[:, :5])
    step = engine.extend(cache, 5, case.token_ids[:, 5:])  # no mask: these two are real, the prefix stays as it was
    np.testing.assert_allclose(step, whole(engine, case)[:, 5:], rtol=0, atol=1e-12)


@pytest.mark.clause("KVC-6")
def test_columns_that_were_never_written_are_padding():
    case = strategies.Float32Case(CONFIG, time=4)
    engine = engine_of(case)
    cache = engine.new_cache(2, 9)
    for layer in layers(cache):
        layer.keys[:], layer.values[:] = 3.0, 1e6
    later = engine.extend(cache, 5, case.token_ids)
    np.testing.assert_allclose(later, whole(engine, case), rtol=0, atol=1e-12)


@pytest.mark.clause("KVC-5")
@pytest.mark.parametrize(("start", "time"), [(-1, 1), (-3, 3), (6, 1), (5, 2), (0, 7), (7, 0)])
def test_a_call_that_does_not_fit_is_refused_and_writes_nothing(start, time):
    engine = engine_of(strategies.Float32Case(CONFIG))
    cache = engine.new_cache(1, 6)
    before = content(cache)
    with pytest.raises(InvalidInput, match=rf"start: expected positions within .* 6, got \[{start}, "):
        engine.extend(cache, start, np.zeros((1, time), int))
    assert content(cache) == before


@pytest.mark.clause("KVC-8")
def test_two_caches_of_one_model_are_independent():
    a, b = (strategies.Float32Case(CONFIG, seed, time=5) for seed in (3, 4))
    engine = engine_of(a)
    mine, yours = engine.new_cache(2, 5), engine.new_cache(2, 5)
    got = []
    for t in range(5):
        got.append(engine.extend(mine, t, a.token_ids[:, t : t + 1]))
        engine.extend(yours, t, b.token_ids[:, t : t + 1])
    alone = engine.new_cache(2, 5)
    expected = [engine.extend(alone, t, a.token_ids[:, t : t + 1]) for t in range(5)]
    assert np.concatenate(got, 1).tobytes() == np.concatenate(expected, 1).tobytes()


@pytest.mark.clause("MOD-9")
def test_another_row_of_the_cache_has_no_influence():
    case = strategies.Float32Case(CONFIG, batch=2, time=6)
    engine = engine_of(case)
    results = []
    for token in (1, 2):
        ids = case.token_ids.copy()
        ids[1] = token
        cache = engine.new_cache(2, 6)
        engine.extend(cache, 0, ids[:, :5])
        results.append(engine.extend(cache, 5, ids[:, 5:])[0])
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.clause("KVC-1", "NUM-2")
def test_write_rounds_once_and_returns_everything_so_far():
    cache = LayerCache.empty(CONFIG, 2, 6, np.dtype(np.float16))
    key, value = np.random.default_rng(0).standard_normal((2, 2, 3, 2, 5)).astype(np.float32)
    cache.keys[:, :, :3] = 1.5
    keys, values = cache.write(3, key, value)
    assert keys.shape == values.shape == (2, 3, 5, 5)
    assert (keys[:, :, :3] == 1.5).all()
    assert np.array_equal(keys[:, :, 3:], key.astype(np.float16))
    assert np.array_equal(values[:, :, 3:], value.astype(np.float16))
    assert not cache.keys[:, :, 5:].any()


def test_select_copies_rows_in_the_order_given():
    case = strategies.Float32Case(CONFIG, batch=3, time=5, kind="left")
    engine = engine_of(case)
    cache = engine.new_cache(3, 6)
    engine.extend(cache, 0, case.token_ids, case.is_real)
    before = content(cache)
    chosen = cache.select(np.array([2, 0, 0, 1]))
    assert chosen.capacity == cache.capacity == 6
    ids = np.array([[3], [4], [5], [6]])
    together = engine.extend(chosen, 5, ids)
    assert content(cache) == before
    for row, source in enumerate((2, 0, 0, 1)):
        alone = cache.select(np.array([source]))
        np.testing.assert_allclose(engine.extend(alone, 5, ids[row : row + 1])[0], together[row], rtol=0, atol=1e-12)


@pytest.mark.clause("KVC-1")
def test_a_model_without_layers_has_an_empty_cache():
    config = CONFIG.replace(num_layers=0)
    cache = Cache.empty(config, 1, 4, strategies.FLOAT64)
    params = strategies.draw_params(config, np.random.default_rng(0))
    got = model.forward(params, config, np.array([[1]]), np.array([[True]]), cache, 2)
    assert cache.layers == ()
    assert cache.is_real.tolist() == [[False, False, True, False]]
    assert got.shape == (1, 1, 15)
