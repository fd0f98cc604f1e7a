"""Duties of the engine: it makes legal calls only, and moves no hidden states to the host without need."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import deterministic_options, id_prompts, make_lm, models

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput
from bloomref.reference.cache import Cache
from bloomref.runtime.backend import Choice, Step
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)


class Watched:
    """A prepared model that records every call and asserts that it is legal."""

    def __init__(self, engine: Engine) -> None:
        self.calls: list[str] = []
        self._prepared, self._config = engine.prepared, engine.config

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._prepared, name)

    def embed(self, token_ids: Any) -> Any:
        self.calls.append("embed")
        assert token_ids.ndim == 2
        assert token_ids.dtype.kind == "i"
        assert np.isin(token_ids, range(self._config.vocabulary_size)).all()
        return self._prepared.embed(token_ids)

    def attention_block(self, layer: int, x: Any, cache: Cache, step: Step) -> Any:
        self.calls.append("attention_block")
        batch, time = x.shape[:2]
        assert 0 <= layer < self._config.num_layers
        assert batch == cache.is_real.shape[0]
        assert 0 <= step.start <= step.start + time <= cache.capacity
        assert step.key_is_real.shape == (batch, step.start + time)
        assert step.key_is_real.dtype == bool
        assert step.is_dense == step.key_is_real.all()
        return self._prepared.attention_block(layer, x, cache, step)


def watch(model: BloomBackbone) -> Watched:
    watched = Watched(model.engine)
    model.engine.prepared = watched
    return watched


@pytest.mark.clause("BKD-14")
@settings(max_examples=25)
@given(st.data(), models())
def test_generation_and_scores_make_legal_calls(data: st.DataObject, drawn: Any) -> None:
    lm = BloomCausalLM(BloomBackbone.from_params(drawn.config, drawn.lm.backbone.params))
    watched = watch(lm.backbone)
    prompts = data.draw(id_prompts(drawn.config.vocabulary_size, min_length=1))
    lm.generate(prompts, **data.draw(deterministic_options(drawn.config.vocabulary_size)))
    lm.score(prompts, context=[])
    assert {"new_cache", "embed", "attention_block", "mlp_block", "final_norm", "logits"} <= set(watched.calls)


@pytest.mark.clause("BKD-14")
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_batches_and_sequences_may_be_empty(shape: tuple[int, int]) -> None:
    model = make_lm(CONFIG).backbone
    watched = watch(model)
    assert model({"token_ids": np.zeros(shape, int)}).shape == (*shape, 12)
    assert watched.calls.count("attention_block") == 2


@pytest.mark.clause("BKD-14")
@pytest.mark.parametrize(
    "inputs",
    [
        {"token_ids": [[20]]},
        {"token_ids": [[-1]]},
        {"token_ids": [[1.0]]},
        {"token_ids": [[True]]},
        {"token_ids": [1]},
        {"token_ids": [[1]], "padding_mask": [[2]]},
        {"token_ids": [[1]], "padding_mask": [[1, 1]]},
        [[1]],
    ],
    ids=str,
)
def test_a_mistake_of_the_user_reaches_no_backend(inputs: Any) -> None:
    model = make_lm(CONFIG).backbone
    watched = watch(model)
    with pytest.raises(InvalidInput):
        model(inputs)
    assert watched.calls == []


@pytest.mark.clause("BKD-14", "KVC-5")
@pytest.mark.parametrize(("start", "rows", "time"), [(-1, 2, 1), (4, 2, 2), (0, 2, 6), (0, 1, 2), (0, 3, 2)])
def test_a_call_that_does_not_fit_the_cache_reaches_no_backend(start: int, rows: int, time: int) -> None:
    engine = make_lm(CONFIG).backbone.engine
    cache = engine.new_cache(2, 5)
    watched = watch(make_lm(CONFIG).backbone)
    engine.prepared = watched
    with pytest.raises(InvalidInput):
        engine.run(cache, start, np.zeros((rows, time), int))
    assert watched.calls == []


INDICES = {
    "run": lambda engine, cache, ids: engine.run(cache, 0, ids),
    "read one position": lambda engine, cache, ids: engine.read(cache, 0, ids[:, :1]),
    "choose": lambda engine, cache, ids: engine.choose(cache, 0, ids[:, 0], Choice(), 1),
    "hidden": lambda engine, _, ids: engine.hidden(TokenBatch(ids, ids == ids)),
    "dropout": lambda engine, _, ids: engine.hidden(TokenBatch(ids, ids == ids), np.random.default_rng(0)),
    "trace": lambda engine, _, ids: engine.trace(TokenBatch(ids, ids == ids), lambda _: True),
    "gradients": lambda engine, _, ids: engine.loss_and_gradients(TokenBatch(ids, ids == ids), None),
    "labels": lambda engine, _, ids: engine.loss_and_gradients(TokenBatch(ids * 0, ids == ids), ids),
    "rows of a cache": lambda engine, _, ids: engine.new_cache(20, 1).select(ids[:, 0]),
}
"""Ways in which numbers reach a backend that uses them as indices."""


@pytest.mark.clause("BKD-14")
@pytest.mark.parametrize("index", [20, -1, 10**9])
@pytest.mark.parametrize("way", INDICES)
def test_an_index_that_the_model_does_not_have_is_refused_on_every_way(way: str, index: int) -> None:
    engine = make_lm(CONFIG).backbone.engine
    cache = engine.new_cache(1, 5)
    with pytest.raises(InvalidInput, match=rf"(ids|rows) in \[0, 20\).*got {index}"):
        INDICES[way](engine, cache, np.array([[index, index]]))


@pytest.mark.clause("BKD-14")
@pytest.mark.parametrize("change", [{"vocabulary_size": 21}, {"num_layers": 3}, {"intermediate_dim": 48}], ids=str)
def test_weights_of_other_sizes_than_the_configs_are_refused(change: dict[str, int]) -> None:
    params = make_lm(CONFIG).backbone.params
    with pytest.raises(InvalidInput, match=r"params.*expected (3 layers|shape)"):
        BloomBackbone.from_params(CONFIG.replace(**change), params)


@pytest.mark.clause("BKD-5")
@pytest.mark.parametrize(
    "strategy", [{}, {"num_beams": 3}, {"top_k": 4, "seed": 1}, {"repetition_penalty": 1.3}], ids=str
)
def test_generation_brings_no_hidden_states_to_the_host(strategy: Any) -> None:
    lm = make_lm(CONFIG)
    watched = watch(lm.backbone)
    lm.generate([[1, 2, 3], [4]], max_new_tokens=6, stop_token_ids=None, **strategy)
    assert watched.calls.count("logits") >= 6
    assert not {"to_host", "from_host"} & set(watched.calls)


@pytest.mark.clause("BKD-5")
def test_contrastive_search_and_scores_read_them() -> None:
    lm = make_lm(CONFIG)
    watched = watch(lm.backbone)
    lm.generate([1, 2, 3], max_new_tokens=4, penalty_alpha=0.6, top_k=3)
    assert "to_host" in watched.calls
    assert "from_host" not in watched.calls
    lm.score([1, 2, 3])
    assert "from_host" in watched.calls
