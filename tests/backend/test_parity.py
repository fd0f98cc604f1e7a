"""Every installed backend compared with the reference, in every dtype. `backend_cases` derives the budget."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from backend_cases import (
    CASES,
    POLICIES,
    SMALL,
    UNIT,
    Trial,
    cases,
    config,
    extend,
    put,
    result_dtype,
    sum_noise,
    whole,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Float32Case

from bloomref import BloomBackbone
from bloomref.dtypes import cast, dtype_policy
from bloomref.errors import InvalidInput
from bloomref.runtime import registry
from bloomref.runtime.backend import Step
from bloomref.runtime.engine import Engine

EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
FEW = settings(max_examples=min(8, settings.default.max_examples))
SEQUENCE = ("left", "right", "holes", "real")


def test_a_backend_is_installed():
    assert registry.names()


# --- each block, and the whole model, within the budget ----------------------------------------------------------


@EVERY_CASE
@EVERY_POLICY
def test_embed(backend, policy, case):
    got = Trial(case, policy, backend).check(lambda p: p.to_host(p.embed(case.token_ids)))
    assert got.dtype == dtype_policy(policy).compute_dtype


@EVERY_CASE
@EVERY_POLICY
def test_attention_block(backend, policy, case):
    """The block runs in two calls, so that the second reads keys and values of the first from the cache."""
    trial = Trial(case, policy, backend)
    x, cut = trial.hidden(), case.time // 3

    def run(prepared: Any) -> Any:
        cache = prepared.new_cache(case.batch, case.time + 2)
        parts = []
        for a, b in ((0, cut), (cut, case.time)):
            facts = Step.at(a, case.is_real[:, :b])
            parts.append(prepared.to_host(prepared.attention_block(0, put(prepared, x[:, a:b]), cache, facts)))
        return np.concatenate(parts, 1)

    assert trial.check(run).dtype == dtype_policy(policy).compute_dtype


@EVERY_CASE
@EVERY_POLICY
def test_mlp_block(backend, policy, case):
    trial = Trial(case, policy, backend)
    everything = np.ones((case.batch, case.time), bool)
    trial.check(lambda p: p.to_host(p.mlp_block(0, put(p, trial.hidden()))), real=everything)


@EVERY_CASE
@EVERY_POLICY
def test_final_norm(backend, policy, case):
    trial = Trial(case, policy, backend)
    trial.check(lambda p: p.to_host(p.final_norm(put(p, trial.hidden()))))


@EVERY_CASE
@EVERY_POLICY
def test_logits(backend, policy, case):
    """The products are one sum each,
    and BLAS has orders that are luckier than others: the budget counts the usual one.
    """
    trial, returned = Trial(case, policy, backend), result_dtype(policy)
    head = trial.params.word_embedding if trial.params.lm_head is None else trial.params.lm_head
    noise = sum_noise(trial.hidden(), head, UNIT[returned.name])
    got = trial.check(lambda p: p.logits(put(p, trial.hidden()), False), returned.name, noise=noise)
    assert got.dtype == returned
    last = trial.tested.logits(put(trial.tested, trial.hidden()), True)
    assert (last.shape, last.dtype) == ((case.batch, 1, case.config.vocabulary_size), returned)
    if trial.exact:
        assert last.tobytes() == got[:, -1:].tobytes()

    def run_last(prepared: Any) -> Any:
        return last if prepared is trial.tested else prepared.logits(put(prepared, trial.hidden()), False)[:, -1:]

    trial.check(run_last, returned.name, real=np.ones((case.batch, 1), bool), noise=noise)


def check_model(trial: Trial) -> None:
    case = trial.case
    trial.check(lambda p: p.to_host(whole(p, case.config.num_layers, case.token_ids, case.is_real)))
    logits = result_dtype(trial.policy).name
    trial.check(lambda p: p.logits(whole(p, case.config.num_layers, case.token_ids, case.is_real), False), logits)


@EVERY_CASE
@EVERY_POLICY
def test_model(backend, policy, case):
    check_model(Trial(case, policy, backend))


@EVERY_POLICY
@given(case=cases())
@FEW
def test_any_model(backend, policy, case):
    check_model(Trial(case, policy, backend))


# --- rounding ----------------------------------------------------------------------------------------------------


@EVERY_POLICY
@given(case=cases(max_time=9))
@FEW
def test_every_block_returns_numbers_of_the_compute_dtype(backend, policy, case):
    """Results of a block are rounded (NUM-2), so a copy to the host and back changes nothing."""
    assume(case.config.num_layers)
    prepared = Trial(case, policy, backend).tested

    def again(x: Any) -> Any:
        return prepared.from_host(prepared.to_host(x))

    def run(through: Any) -> bytes:
        cache = prepared.new_cache(case.batch, case.time)
        x = through(prepared.embed(case.token_ids))
        x = through(prepared.attention_block(0, x, cache, Step.at(0, case.is_real)))
        x = through(prepared.final_norm(through(prepared.mlp_block(0, x))))
        return prepared.logits(x, False).tobytes()

    assert run(again) == run(lambda x: x)


@pytest.mark.parametrize("policy", [*POLICIES, "mixed_bfloat16", "mixed_float16"])
def test_weights_are_rounded_to_the_compute_dtype(backend, policy):
    """Wider weights give the bits of weights that were rounded before (NUM-1);
    a mixed policy passes weights in its variable dtype.
    """
    names = dtype_policy(policy)
    case = Float32Case(config(3, 16, 40, 4100, 1, tie_word_embeddings=False), seed=21, time=30)
    handed = case.params.astype(names.variable_dtype) if policy.startswith("mixed") else case.params
    got = []
    for params in (handed, handed.astype(names.compute_dtype)):
        prepared = registry.load(backend).prepare(params, case.config, names)
        got.append(prepared.logits(whole(prepared, 1, case.token_ids, case.is_real), False).tobytes())
    assert got[0] == got[1]


@pytest.mark.parametrize("policy", POLICIES[2:])
def test_weights_halfway_between_two_numbers_are_rounded_once(backend, policy):
    """A float64 just off the middle between two numbers of the compute dtype is on the middle in float32."""
    names = dtype_policy(policy)
    middle = 1.0 + (2.0**-8 if policy == "bfloat16" else 2.0**-11)
    params = SMALL.params.map(lambda w: np.where(w > 0, middle * (1 + 2.0**-40), w))
    got = []
    for given_params in (params, params.astype(names.compute_dtype)):
        prepared = registry.load(backend).prepare(given_params, SMALL.config, names)
        got.append(prepared.logits(whole(prepared, 2, SMALL.token_ids, SMALL.is_real), False).tobytes())
    assert got[0] == got[1]


# --- what a position depends on ----------------------------------------------------------------------------------


@EVERY_POLICY
@given(st.data(), cases())
@FEW
def test_any_division_into_calls(backend, policy, data, case):
    """Chunked calls are within the budget of one call (KVC-7), with the same bits if the backend promises it."""
    trial, layers = Trial(case, policy, backend), case.config.num_layers
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, case.time), max_size=5), label="cuts")), case.time]
    spare = data.draw(st.sampled_from((0, 1, 130)), label="spare capacity")

    def run(prepared: Any) -> Any:
        if prepared is not trial.tested:
            return prepared.to_host(whole(prepared, layers, case.token_ids, case.is_real))
        cache = prepared.new_cache(case.batch, case.time + spare)
        parts = [
            prepared.to_host(extend(prepared, layers, cache, a, case.token_ids[:, a:b], case.is_real[:, :b]))
            for a, b in pairwise(edges)
        ]
        assert [part.shape[1] for part in parts] == [b - a for a, b in pairwise(edges)]
        return np.concatenate(parts, 1)

    got = trial.check(run)
    if trial.exact:
        once = trial.tested.to_host(whole(trial.tested, layers, case.token_ids, case.is_real))
        assert got.tobytes() == once.tobytes()


@EVERY_POLICY
@given(st.data(), cases())
@FEW
def test_repeating_a_call_changes_nothing(backend, policy, data, case):
    """KVC-4: a repeated call gives the same bits, and leaves the cache unchanged for later calls."""
    prepared, layers = Trial(case, policy, backend).tested, case.config.num_layers
    start = data.draw(st.integers(0, case.time - 1), label="start")
    stop = data.draw(st.integers(start, case.time), label="stop")
    caches = [prepared.new_cache(case.batch, case.time) for _ in range(2)]
    results = []
    for repeats, cache in enumerate(caches, 1):
        extend(prepared, layers, cache, 0, case.token_ids[:, :start], case.is_real[:, :start])
        for _ in range(repeats):
            x = extend(prepared, layers, cache, start, case.token_ids[:, start:stop], case.is_real[:, :stop])
        later = extend(prepared, layers, cache, stop, case.token_ids[:, stop:], case.is_real)
        results.append(prepared.to_host(x).tobytes() + prepared.to_host(later).tobytes())
    assert results[0] == results[1]


@EVERY_POLICY
@given(st.data(), cases())
@FEW
def test_causality(backend, policy, data, case):
    """ATT-5: another token at t changes no bit of a score before t, and at least one score from t on."""
    prepared, layers = Trial(case, policy, backend).tested, case.config.num_layers
    at = data.draw(st.integers(0, case.time - 1), label="t")
    other = case.token_ids.copy()
    other[:, at] = (other[:, at] + 1) % case.config.vocabulary_size
    real = np.ones_like(case.is_real)
    one, two = (prepared.logits(whole(prepared, layers, ids, real), False) for ids in (case.token_ids, other))
    assert one[:, :at].tobytes() == two[:, :at].tobytes()
    assert one[:, at].tobytes() != two[:, at].tobytes()


@EVERY_POLICY
@given(st.data(), cases(kinds=("left", "holes", "right", "padding row")))
@FEW
def test_padding_has_no_influence(backend, policy, data, case):
    """ATT-7: ids in padded columns change no bit of real positions, and padded rows are finite."""
    prepared, layers = Trial(case, policy, backend).tested, case.config.num_layers
    one = prepared.logits(whole(prepared, layers, case.token_ids, case.is_real), False)
    ids = data.draw(st.integers(0, case.config.vocabulary_size - 1), label="padding id")
    two = prepared.logits(whole(prepared, layers, np.where(case.is_real, case.token_ids, ids), case.is_real), False)
    assert np.isfinite(one).all()
    assert one[case.is_real].tobytes() == two[case.is_real].tobytes()


@EVERY_POLICY
@given(case=cases(kinds=("real",)), columns=st.sampled_from((1, 2, 15, 33, 128)))
@FEW
def test_left_padding(backend, policy, case, columns):
    """A sequence moved to the right by padding is within the budget of the sequence alone."""
    trial, layers = Trial(case, policy, backend), case.config.num_layers
    ids = np.pad(case.token_ids, ((0, 0), (columns, 0)))
    real = np.pad(case.is_real, ((0, 0), (columns, 0)))

    def run(prepared: Any) -> Any:
        if prepared is trial.truth:
            return prepared.logits(whole(prepared, layers, case.token_ids, case.is_real), False)
        return prepared.logits(whole(prepared, layers, ids, real), False)[:, columns:]

    trial.check(run, result_dtype(policy).name)


@EVERY_POLICY
@given(case=cases())
@FEW
def test_a_row_alone_is_the_row_in_a_batch(backend, policy, case):
    trial, layers = Trial(case, policy, backend), case.config.num_layers

    def run(prepared: Any) -> Any:
        if prepared is not trial.tested:
            return prepared.logits(whole(prepared, layers, case.token_ids, case.is_real), False)
        rows = [slice(i, i + 1) for i in range(case.batch)]
        alone = [prepared.logits(whole(prepared, layers, case.token_ids[r], case.is_real[r]), False) for r in rows]
        return np.concatenate(alone)

    got = trial.check(run, result_dtype(policy).name)
    if trial.exact:
        together = trial.tested.logits(whole(trial.tested, layers, case.token_ids, case.is_real), False)
        assert got.tobytes() == together.tobytes()


# --- caches and inputs -------------------------------------------------------------------------------------------


@EVERY_POLICY
@given(case=cases(max_time=8))
@FEW
def test_two_caches_of_one_model_are_independent(backend, policy, case):
    """BKD-1: two caches are independent, with calls that alternate position by position."""
    prepared, layers = Trial(case, policy, backend).tested, case.config.num_layers
    other = (case.token_ids + 1) % case.config.vocabulary_size

    def run(*sequences: Any) -> bytes:
        caches = [prepared.new_cache(case.batch, case.time) for _ in sequences]
        found = b""
        for t in range(case.time):
            for i, (ids, cache) in enumerate(zip(sequences, caches, strict=True)):
                x = extend(prepared, layers, cache, t, ids[:, t : t + 1], case.is_real[:, : t + 1])
                found += prepared.to_host(x).tobytes() if i == 0 else b""
        return found

    assert run(case.token_ids, other) == run(case.token_ids)


@EVERY_POLICY
def test_select_copies_rows_in_the_order_given(backend, policy):
    case = Float32Case(config(3, 7, 20), seed=31, batch=3, time=40, kind="left")
    trial = Trial(case, policy, backend)
    prepared, order = trial.tested, np.array([2, 0, 0, 1])
    cache = prepared.new_cache(3, 41)
    extend(prepared, 2, cache, 0, case.token_ids, case.is_real)
    chosen = cache.select(order)
    ids = np.array([[3], [4], [5], [6]])
    real = np.pad(case.is_real, ((0, 0), (0, 1)), constant_values=True)
    extend(prepared, 2, cache, 40, ids[:3] + 5, real)  # the copy does not see this

    def run(p: Any) -> Any:
        if p is prepared:
            return p.to_host(extend(p, 2, chosen, 40, ids, real[order]))
        return p.to_host(whole(p, 2, np.hstack([case.token_ids[order], ids]), real[order]))[:, -1:]

    trial.check(run, real=np.ones((4, 1), bool))


@EVERY_POLICY
def test_inputs_are_left_alone(backend, policy):
    trial = Trial(SMALL, policy, backend)
    inputs = [array for _, _, array in trial.params.named()]
    inputs += [SMALL.token_ids.copy(), SMALL.is_real.copy(), trial.hidden()]
    before = [array.tobytes() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    prepared = trial.tested
    x = extend(prepared, 2, prepared.new_cache(2, 7), 0, inputs[-3], inputs[-2])
    seen = prepared.to_host(x).tobytes()
    prepared.logits(x, False)
    assert prepared.to_host(x).tobytes() == seen
    device = prepared.from_host(inputs[-1])
    prepared.mlp_block(0, device)
    prepared.attention_block(0, device, prepared.new_cache(2, 7), Step.at(0, inputs[-2]))
    prepared.final_norm(device)
    assert prepared.to_host(device).tobytes() == before[-1]
    assert [array.tobytes() for array in inputs] == before


@EVERY_POLICY
@given(case=cases())
@FEW
def test_there_and_back(backend, policy, case):
    trial = Trial(case, policy, backend)
    x = trial.hidden()
    back = trial.tested.to_host(trial.tested.from_host(x))
    assert (back.dtype, back.shape, back.tobytes()) == (x.dtype, x.shape, x.tobytes())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
@EVERY_POLICY
def test_an_empty_batch_and_an_empty_sequence(backend, policy, shape):
    """MOD-1: empty calls have empty results, and one in the middle of a sequence changes nothing."""
    engine = Engine(SMALL.params, SMALL.config, dtype_policy(policy), backend)
    cache = engine.new_cache(*shape)
    x = engine.run(cache, 0, np.zeros(shape, np.int64))
    assert engine.prepared.to_host(x).shape == (*shape, 15)
    assert engine.prepared.logits(x, False).shape == (*shape, 40)
    assert cache.select(np.arange(shape[0])).capacity == shape[1]
    assert engine.prepared.logits(x, True).shape == (shape[0], min(shape[1], 1), 40)


# --- the same refusals, and the same behaviour of the public API -------------------------------------------------

SIZES = {"vocabulary_size": 10, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
REFUSED: dict[str, Any] = {
    "an id too large": {"token_ids": [[1, 10]]},
    "a negative id": {"token_ids": [[1, -1]]},
    "fractions": {"token_ids": [[1.5]]},
    "no batch": {"token_ids": [1, 2]},
    "ragged": {"token_ids": [[1, 2], [3]]},
    "a mask of another shape": {"token_ids": [[1, 2]], "padding_mask": [[1]]},
    "a mask of other numbers": {"token_ids": [[1, 2]], "padding_mask": [[1, 2]]},
    "an unknown key": {"token_ids": [[1]], "mask": [[1]]},
}


@pytest.mark.parametrize("inputs", REFUSED.values(), ids=REFUSED.keys())
def test_a_mistake_is_refused_as_by_the_reference(backend, inputs):
    messages = set()
    for name in (backend, registry.REFERENCE):
        with pytest.raises(InvalidInput) as caught:
            BloomBackbone(**SIZES, backend=name)(inputs)
        messages.add((caught.type, str(caught.value)))
    assert len(messages) == 1


@pytest.mark.parametrize(("start", "rows", "time"), [(-1, 1, 1), (6, 1, 1), (5, 1, 2), (0, 2, 1), (0, 1, 7)])
def test_a_call_that_does_not_fit_is_refused(backend, start, rows, time):
    engine = BloomBackbone(**SIZES, backend=backend).engine
    with pytest.raises(InvalidInput):
        engine.run(engine.new_cache(1, 6), start, np.zeros((rows, time), int))


@EVERY_POLICY
def test_the_public_api(backend, policy):
    """The public class returns the right dtype and shape."""
    backbone = BloomBackbone(**SIZES, backend=backend, dtype=policy)
    hidden = backbone({"token_ids": [[1, 2, 3]], "padding_mask": [[0, 1, 1]]})
    assert (hidden.dtype, hidden.shape) == (dtype_policy(policy).compute_dtype, (1, 3, 8))
    logits = backbone.engine.logits(hidden)
    assert (logits.dtype, logits.shape) == (result_dtype(policy), (1, 3, 10))
    assert cast(hidden, result_dtype(policy)).dtype == result_dtype(policy)
