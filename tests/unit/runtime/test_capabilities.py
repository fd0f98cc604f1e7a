"""A backend has an optional capability if it implements the methods, whatever its name or class.

Without the capability, a request is refused, or served in another way.
"""

from typing import Any

import numpy as np
import pytest

from bloomref import BloomBackbone, LoraConfig, Unsupported
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, dtype_policy
from bloomref.params import Params, init_params
from bloomref.reference import lora
from bloomref.runtime.backend import API_VERSION, Prepared
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.runtime.numpy_backend import NumpyBackend, NumpyPrepared

CONFIG = BloomConfig(
    vocabulary_size=13, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=12, hidden_dropout=0.5
)
IDS = np.array([[3, 1, 4, 1, 5]])
BATCH = TokenBatch(IDS, np.ones(IDS.shape, bool))
POLICY = dtype_policy("float32")
PARAMS = init_params(CONFIG, 0, POLICY.variable_dtype)


class Elsewhere(NumpyBackend):
    """Another package's backend that has every capability of the reference."""

    name = "elsewhere"


class Plain:
    """The required methods of a prepared model, and no others."""

    def __init__(self, prepared: NumpyPrepared) -> None:
        for name in vars(Prepared):
            if not name.startswith("_"):
                setattr(self, name, getattr(prepared, name))


class Minimal:
    """The required methods of a backend, and no others."""

    name = "minimal"
    api_version = API_VERSION

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:  # noqa: ARG002
        return None

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Any:
        assert not lora.is_adapted(params), "a backend without the capability gets merged weights"
        return Plain(NumpyBackend().prepare(params, config, policy))


def adapted(backend: Any) -> BloomBackbone:
    """A model with an adapter whose B is not zero."""
    model = BloomBackbone.from_params(CONFIG, PARAMS, "float32", backend=backend)
    model.add_adapter(LoraConfig(r=2, target_modules=["query_key_value", "dense_4h_to_h"]))
    rng = np.random.default_rng(0)
    factors = model.trainable_variables()
    model.assign_variables({name: rng.normal(size=array.shape).astype(array.dtype) for name, array in factors.items()})
    return model


@pytest.mark.clause("BKD-20")
def test_a_backend_of_any_name_has_the_capabilities_that_it_implements() -> None:
    engine, reference = (Engine(PARAMS, CONFIG, POLICY, backend) for backend in (Elsewhere(), NumpyBackend()))
    assert engine.backend == "elsewhere"
    drops = [e.hidden(BATCH, np.random.default_rng(1)) for e in (engine, reference)]
    np.testing.assert_array_equal(*drops)
    assert (drops[0] != engine.hidden(BATCH)).any()
    traces = [e.trace(BATCH, lambda name: "scores" in name) for e in (engine, reference)]
    assert list(traces[0]) == list(traces[1]) == ["layers.0.attention.scores", "layers.1.attention.scores"]
    losses = [e.loss_and_gradients(BATCH, None)[0] for e in (engine, reference)]
    assert losses[0] == losses[1]


@pytest.mark.clause("BKD-6")
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: e.hidden(BATCH, np.random.default_rng(1)), "training: expected a backend with dropout"),
        (lambda e: e.trace(BATCH, lambda _: True), "trace: expected a backend whose intermediates have names"),
        (lambda e: e.loss_and_gradients(BATCH, None), "gradients: expected a backend that has them"),
    ],
)
def test_a_missing_capability_is_refused_by_the_name_of_the_backend(ask: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=f"{message}.*, got 'minimal'"):
        ask(Engine(PARAMS, CONFIG, POLICY, Minimal()))


@pytest.mark.clause("LRA-8")
def test_adapters_are_added_where_the_backend_can_and_merged_where_it_cannot() -> None:
    inputs = {"token_ids": IDS}
    models = [adapted(backend) for backend in (NumpyBackend(), Elsewhere(), Minimal())]
    assert [lora.is_adapted(model.engine.prepared.params) for model in models[:2]] == [True, True]
    reference, elsewhere, merged = (model(inputs) for model in models)
    np.testing.assert_array_equal(elsewhere, reference)
    np.testing.assert_allclose(merged, reference, rtol=1e-4, atol=1e-5)
    assert np.abs(reference - BloomBackbone.from_params(CONFIG, PARAMS)(inputs)).max() > 1e-3


def test_arrays_that_a_model_runs_on_are_not_stored_twice() -> None:
    wide = PARAMS.astype(np.dtype(np.float64))
    engine = Engine(wide, CONFIG, POLICY, Elsewhere())
    assert engine.stored_params.word_embedding is engine.prepared.params.word_embedding
    assert Engine(wide, CONFIG, POLICY, Minimal()).stored_params.word_embedding is wide.word_embedding


class Alone:
    """A prepared model with one of the two capabilities of decoding, which returns what it is told."""

    def __init__(self, prepared: Any, name: str, result: Any) -> None:
        self._prepared = prepared
        setattr(self, name, lambda *_: result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prepared, name)


@pytest.mark.clause("BKD-17", "BKD-18", "BKD-20")
def test_a_step_is_used_without_tokens_and_tokens_without_a_step() -> None:
    from bloomref.runtime.backend import Choice

    engine = Engine(PARAMS, CONFIG, POLICY)
    prepared, cache, logits, ids = (
        engine.prepared,
        engine.new_cache(1, 6),
        np.ones((1, 13), np.float32),
        np.array([[7, 8]]),
    )
    engine.prepared = Alone(prepared, "step", logits)
    assert engine.read(cache, 0, IDS[:, :1]) is logits
    assert engine.choose(cache, 1, IDS[:, 1], Choice(), 2) is None
    engine.prepared = Alone(prepared, "tokens", ids)
    assert engine.choose(cache, 1, IDS[:, 1], Choice(), 2) is ids
    assert engine.read(cache, 0, IDS[:, :1]).tobytes() != logits.tobytes()


def test_decoding_on_the_device_is_refused_beyond_the_cache_and_a_refusal_leaves_the_cache_unchanged() -> None:
    from bloomref import InvalidInput
    from bloomref.runtime.backend import Choice

    class Refusing(NumpyPrepared):
        def step(self, *_: Any) -> Any:
            raise AssertionError

        def tokens(self, *_: Any) -> Any:
            raise Unsupported("not this choice")

    class Backend(NumpyBackend):
        def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Refusing:  # noqa: ARG002
            return Refusing(params, config)

    engine = Engine(PARAMS, CONFIG, POLICY, Backend())
    cache = engine.new_cache(1, 6)
    engine.run(cache, 0, IDS)
    before = cache.is_real.copy()
    assert engine.choose(cache, 5, np.array([2]), Choice(), 1) is None
    np.testing.assert_array_equal(cache.is_real, before)
    with pytest.raises(InvalidInput, match=r"capacity of 6, got \[5, 7\)"):
        engine.choose(cache, 5, np.array([2]), Choice(), 2)
