"""The clauses of specs/95-backend.md for every backend, in small cases; test_parity.py has larger ones."""

from typing import Any

import numpy as np
import pytest
from backend_cases import SMALL, extend, whole

from bloomref import alibi
from bloomref.dtypes import POLICIES, accumulation_dtype, dtype_policy
from bloomref.params import Params
from bloomref.runtime import registry
from bloomref.runtime.backend import Prepared, Step, SupportsStep

FLOAT32 = dtype_policy("float32")
CONFIG, LAYERS = SMALL.config, SMALL.config.num_layers
PARAMS = SMALL.params.astype(np.dtype(np.float32))


def prepare(name: str, policy: str = "float32", params: Params = PARAMS) -> Any:
    chosen = dtype_policy(policy)
    return registry.choose(name, CONFIG, chosen).prepare(params.astype(chosen.variable_dtype), CONFIG, chosen)


def bits(prepared: Prepared, hidden: Any) -> bytes:
    return prepared.to_host(hidden).tobytes()


@pytest.mark.clause("BKD-1")
def test_caches_and_prepared_models_are_independent(backend: str) -> None:
    mine, other = prepare(backend), prepare(backend, params=PARAMS.map(lambda array: array * 1.25))
    ids, real = SMALL.token_ids, SMALL.is_real

    def steps(between: bool) -> list[bytes]:
        cache, second, states = mine.new_cache(*ids.shape), mine.new_cache(*ids.shape), []
        for t in range(ids.shape[1]):
            states.append(bits(mine, extend(mine, LAYERS, cache, t, ids[:, t : t + 1], real[:, : t + 1])))
            if between:
                extend(mine, LAYERS, second, t, ids[::-1, t : t + 1], real[::-1, : t + 1])
                whole(other, LAYERS, ids, real)
        return states

    assert steps(True) == steps(False)
    assert bits(mine, whole(mine, LAYERS, ids, real)) != bits(other, whole(other, LAYERS, ids, real))


@pytest.mark.clause("BKD-2")
def test_a_call_is_a_function_of_its_arguments(backend: str) -> None:
    prepared, ids, real = prepare(backend), SMALL.token_ids, SMALL.is_real
    cache = prepared.new_cache(ids.shape[0], ids.shape[1] + 2)
    first = bits(prepared, extend(prepared, LAYERS, cache, 0, ids, real))
    later = bits(prepared, extend(prepared, LAYERS, cache, 4, ids[:, 4:], real))
    assert bits(prepared, extend(prepared, LAYERS, cache, 4, ids[:, 4:], real)) == later  # the same call again
    extend(prepared, LAYERS, cache, 2, ids[::-1, 2:], real)  # rewound, with other tokens
    assert bits(prepared, extend(prepared, LAYERS, cache, 0, ids, real)) == first  # and back


@pytest.mark.clause("BKD-21")
def test_the_caller_may_write_to_logits(backend: str) -> None:
    prepared, ids, real = prepare(backend), SMALL.token_ids, SMALL.is_real
    hidden = whole(prepared, LAYERS, ids, real)
    logits = prepared.logits(hidden, True)
    expected = logits.copy()
    logits[...] = 0.0
    np.testing.assert_array_equal(prepared.logits(hidden, True), expected)
    if isinstance(prepared, SupportsStep):
        cache, one = prepared.new_cache(len(ids), 1), Step.at(0, np.ones((len(ids), 1), bool))
        logits = prepared.step(ids[:, 0], cache, one)
        expected = logits.copy()
        logits[...] = 0.0
        np.testing.assert_array_equal(prepared.step(ids[:, 0], cache, one), expected)


@pytest.mark.clause("BKD-3")
def test_arguments_and_returned_hidden_states_stay_as_they_are(backend: str) -> None:
    prepared = prepare(backend)
    ids, real = SMALL.token_ids.copy(), SMALL.is_real.copy()
    facts, cache = Step.at(0, real), prepared.new_cache(*ids.shape)
    weights = [array.tobytes() for _, _, array in PARAMS.named()]
    states, bytes_of = [], []

    def keep(hidden: Any) -> None:
        states.append(hidden)
        bytes_of.append(bits(prepared, hidden))

    keep(prepared.embed(ids))
    for layer in range(CONFIG.num_layers):
        keep(prepared.attention_block(layer, states[-1], cache, facts))
        keep(prepared.mlp_block(layer, states[-1]))
    keep(prepared.final_norm(states[-1]))
    prepared.logits(states[-1], False)
    prepared.logits(states[-1], True)
    whole(prepared, LAYERS, ids[::-1], real)
    assert [bits(prepared, x) for x in states] == bytes_of
    assert np.array_equal(ids, SMALL.token_ids)
    assert np.array_equal(facts.key_is_real, SMALL.is_real)
    assert [array.tobytes() for _, _, array in PARAMS.named()] == weights


@pytest.mark.clause("BKD-4")
def test_select_copies(backend: str) -> None:
    prepared, ids, real = prepare(backend), SMALL.token_ids, SMALL.is_real
    cache = prepared.new_cache(ids.shape[0], ids.shape[1])
    extend(prepared, LAYERS, cache, 0, ids[:, :-1], real[:, :-1])
    rows = np.array([1, 0, 1])
    chosen = cache.select(rows)
    last = extend(prepared, LAYERS, cache, ids.shape[1] - 1, ids[:, -1:], real)
    expected = prepared.to_host(last)[rows]
    got = prepared.to_host(extend(prepared, LAYERS, chosen, ids.shape[1] - 1, ids[rows, -1:], real[rows]))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    extend(prepared, LAYERS, chosen, 0, ids[rows][::-1], real[rows])  # overwrites the copy, and nothing else
    assert bits(prepared, extend(prepared, LAYERS, cache, ids.shape[1] - 1, ids[:, -1:], real)) == bits(prepared, last)


@pytest.mark.clause("BKD-12")
def test_slopes_come_from_the_vocabulary(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, real = SMALL.token_ids, SMALL.is_real

    def hidden(name: str) -> Any:
        prepared = prepare(name)
        return prepared.to_host(whole(prepared, LAYERS, ids, real))[real]

    before = hidden(backend)
    slopes = alibi.slopes
    monkeypatch.setattr(alibi, "slopes", lambda *arguments: 3 * slopes(*arguments))
    after = hidden(backend)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, hidden("numpy"), rtol=0, atol=1e-4)


@pytest.mark.clause("BKD-13")
@pytest.mark.parametrize("policy", POLICIES)
def test_dtypes_on_the_host(backend: str, policy: str) -> None:
    prepared = prepare(backend, policy)
    hidden = whole(prepared, LAYERS, SMALL.token_ids, SMALL.is_real)
    there = prepared.to_host(hidden)
    assert there.dtype == dtype_policy(policy).compute_dtype
    assert there.shape == (*SMALL.token_ids.shape, CONFIG.hidden_dim)
    back = prepared.from_host(there)
    assert bits(prepared, back) == there.tobytes()
    for last_only, time in ((True, 1), (False, SMALL.time)):
        logits = prepared.logits(back, last_only)
        assert isinstance(logits, np.ndarray)
        assert logits.dtype == accumulation_dtype(there.dtype)
        assert logits.shape == (SMALL.batch, time, CONFIG.vocabulary_size)
