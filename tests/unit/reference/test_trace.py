"""Named intermediates: order, shapes and values. Observation changes no result; replacement does."""

import threading

import numpy as np
import pytest
import strategies
from hypothesis import given, settings

from bloomref.reference import model, trace

IN_LAYER = {
    "attention.norm": "B T D",
    "attention.query": "B H T K",
    "attention.key": "B H T K",
    "attention.value": "B H T K",
    "attention.scores": "B H T S",
    "attention.probabilities": "B H T S",
    "attention.context": "B T D",
    "attention.output": "B T D",
    "attention_block": "B T D",
    "mlp.norm": "B T D",
    "mlp.up": "B T F",
    "mlp.gelu": "B T F",
    "mlp.output": "B T D",
    "mlp_block": "B T D",
}


def run(case: strategies.Float32Case) -> np.ndarray:
    return model.logits(case.params, model.forward(case.params, case.config, case.token_ids, case.is_real))


@pytest.mark.clause("MOD-8", "MOD-2")
@given(strategies.cases())
@settings(max_examples=30)
def test_names_order_and_shapes(case):
    with trace.record() as values:
        run(case)
    layers = [(f"layers.{i}.{name}", axes) for i in range(case.config.num_layers) for name, axes in IN_LAYER.items()]
    expected = [
        ("word_embedding", "B T D"),
        ("embedding_norm", "B T D"),
        *layers,
        ("final_norm", "B T D"),
        ("logits", "B T V"),
    ]
    assert list(values) == [name for name, _ in expected]
    batch, time = case.token_ids.shape
    sizes = case.config.sizes | {"B": batch, "T": time, "S": time}
    for name, axes in expected:
        assert values[name].shape == tuple(sizes[letter] for letter in axes.split()), name


@pytest.mark.clause("MOD-11")
@given(strategies.cases())
@settings(max_examples=20)
def test_recording_changes_nothing(case):
    alone = run(case)
    with trace.record() as values:
        recorded = run(case)
    assert np.array_equal(alone, recorded)
    assert np.array_equal(values["logits"], alone)


CASE = strategies.Float32Case(
    strategies.BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=7),
    kind="left",
)


@pytest.mark.clause("MOD-8")
def test_recorded_values_fit_together():
    with trace.record() as values:
        run(CASE)
    for i in range(2):
        at = f"layers.{i}.attention."
        scores, probabilities = values[at + "scores"], values[at + "probabilities"]
        visible = np.tril(np.ones((6, 6), bool)) & CASE.is_real[:, None, None, :] & CASE.is_real[:, None, :, None]
        assert np.isfinite(scores).all()  # scores are those before the mask
        weights = np.where(visible, np.exp(scores), 0.0)
        total = weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities, weights / np.where(total == 0, 1, total), rtol=1e-12, atol=1e-15)
        context = np.einsum("BHTS,BHSK->BTHK", probabilities, values[at + "value"]).reshape(2, 6, 12)
        np.testing.assert_allclose(values[at + "context"], context, rtol=0, atol=1e-13)
        before = values["embedding_norm"] if i == 0 else values["layers.0.mlp_block"]
        np.testing.assert_array_equal(values[f"layers.{i}.attention_block"], before + values[at + "output"])


def test_only_requested_intermediates_are_stored():
    with trace.record(lambda name: name.endswith("scores")) as values:
        run(CASE)
    assert list(values) == ["layers.0.attention.scores", "layers.1.attention.scores"]


def test_an_observer_can_replace_a_value():
    zeros = np.zeros((2, 3, 6, 6))

    def uniform(name, value):
        return zeros if name == "layers.1.attention.scores" else value

    with trace.observe(uniform), trace.record() as outer:
        run(CASE)
    assert "logits" in outer  # the inner observer is the one that answers
    values = {}

    def both(name, value):
        values[name] = uniform(name, value).copy()
        return uniform(name, value)

    with trace.observe(both):
        changed = run(CASE)
    counts = values["layers.1.attention.probabilities"][CASE.is_real.sum(1) == 6]
    np.testing.assert_allclose(counts[..., 3, :4], 0.25)
    assert not np.allclose(changed, run(CASE))
    assert not zeros.any()  # the model works in place, but not on the observer's arrays


def test_observation_ends_with_the_block_even_after_an_error():
    def fail(name, value):
        raise KeyError(name, value)

    with pytest.raises(KeyError), trace.observe(fail):
        run(CASE)
    run(CASE)
    zeros, names = np.zeros(1), []
    assert trace.tap("after", zeros) is zeros
    with trace.observe(lambda name, value: names.append(name) or value):
        trace.tap("outside of layers", zeros)
    assert names == ["outside of layers"]


@pytest.mark.clause("MOD-11")
def test_threads_do_not_see_each_other():
    cases = [strategies.Float32Case(CASE.config, seed) for seed in range(4)]
    expected = [run(case) for case in cases]
    recorded: dict[int, dict[str, np.ndarray]] = {}
    barrier = threading.Barrier(len(cases))

    def work(i):
        barrier.wait()
        with trace.record() as values:
            for _ in range(5):
                run(cases[i])
        recorded[i] = values

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(len(cases)):
        np.testing.assert_allclose(recorded[i]["logits"], expected[i], rtol=0, atol=1e-12)
    zeros = np.zeros(1)
    assert trace.tap("main thread", zeros) is zeros
