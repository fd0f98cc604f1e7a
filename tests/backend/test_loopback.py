"""The engine over the reference is the model, bit for bit: a mistake of the engine cannot hide inside a tolerance."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, DTypePolicy
from bloomref.reference import model
from bloomref.reference.cache import Cache
from bloomref.reference.trace import record
from bloomref.runtime.backend import Step
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.runtime.numpy_backend import NumpyPrepared

Edges = list[int]
Results = dict[str, tuple[str, bytes]]


def exactly(arrays: dict[str, Any]) -> Results:
    """Names in order, with dtype, shape and bytes of each array."""
    return {name: (f"{a.dtype} {a.shape}", a.tobytes()) for name, a in arrays.items()}


def by_engine(engine: Engine, case: strategies.Float32Case, edges: Edges) -> Results:
    with record() as seen:
        hidden = engine.hidden(TokenBatch(case.token_ids, case.is_real))
        logits = engine.logits(hidden)
    found = {f"trace {name}": array for name, array in seen.items()} | {"hidden": hidden, "logits": logits}
    cache = engine.new_cache(case.batch, case.time)
    for a, b in pairwise(edges):
        states = engine.run(cache, a, case.token_ids[:, a:b], case.is_real[:, a:b])
        found |= {f"[{a}, {b}) hidden": engine.prepared.to_host(states)}
        found |= {f"[{a}, {b}) next": engine.next_logits(states)} if a < b else {}
    assert isinstance(cache.blocks, Cache)
    return exactly(found | {"mask": cache.is_real} | kept(cache.blocks))


def by_model(case: strategies.Float32Case, policy: DTypePolicy, edges: Edges) -> Results:
    params = case.params.astype(policy.variable_dtype).astype(policy.compute_dtype)
    config = case.config
    with record() as seen:
        hidden = model.forward(params, config, case.token_ids, case.is_real)
        logits = model.logits(params, hidden)
    found = {f"trace {name}": array for name, array in seen.items()} | {"hidden": hidden, "logits": logits}
    cache = Cache.empty(config, case.batch, case.time, policy.compute_dtype)
    for a, b in pairwise(edges):
        states = model.forward(params, config, case.token_ids[:, a:b], case.is_real[:, a:b], cache, a)
        found |= {f"[{a}, {b}) hidden": states}
        found |= {f"[{a}, {b}) next": model.logits(params, states[:, -1:])[:, 0]} if a < b else {}
    return exactly(found | {"mask": cache.is_real} | kept(cache))


def kept(cache: Cache) -> dict[str, Any]:
    return {f"layer {i} {n}": getattr(layer, n) for i, layer in enumerate(cache.layers) for n in ("keys", "values")}


def compare(engine: Engine, case: strategies.Float32Case, edges: Edges) -> None:
    got, expected = by_engine(engine, case, edges), by_model(case, engine.policy, edges)
    assert list(got) == list(expected)
    assert [name for name in expected if got[name] != expected[name]] == []


@pytest.mark.clause("BKD-11")
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(data=st.data(), case=strategies.cases())
def test_the_engine_over_the_reference_is_the_model(
    policy: str, data: st.DataObject, case: strategies.Float32Case
) -> None:
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, case.time), max_size=3))), case.time]
    compare(Engine(case.params, case.config, POLICIES[policy], backend="numpy"), case, edges)


# --- the comparison can fail -------------------------------------------------------------------------------------


class RightPrepared(NumpyPrepared):
    """A control: an unchanged reference passes."""


class OffByOneBit(NumpyPrepared):
    def mlp_block(self, layer: int, x: Any) -> Any:
        y = super().mlp_block(layer, x)
        y[0, -1, 0] = np.nextafter(y[0, -1, 0], np.inf, dtype=y.dtype)
        return y


class FirstLayerOnly(NumpyPrepared):
    def attention_block(self, layer: int, x: Any, cache: Cache, step: Step) -> Any:
        return super().attention_block(layer * 0, x, cache, step)


class MaskIgnored(NumpyPrepared):
    def attention_block(self, layer: int, x: Any, cache: Cache, step: Step) -> Any:
        return super().attention_block(layer, x, cache, replace(step, key_is_real=np.ones_like(step.key_is_real)))


class PrefixForgotten(NumpyPrepared):
    def attention_block(self, layer: int, x: Any, cache: Cache, step: Step) -> Any:
        seen = step.key_is_real.copy()
        seen[:, : step.start] = False
        return super().attention_block(layer, x, cache, replace(step, key_is_real=seen))


class FirstPositionScored(NumpyPrepared):
    def logits(self, x: Any, last_only: bool) -> Any:
        return super().logits(x[:, :1] if last_only else x, last_only)


class NormTwice(NumpyPrepared):
    def final_norm(self, x: Any) -> Any:
        return super().final_norm(super().final_norm(x))


class Unnamed(NumpyPrepared):
    def mlp_block(self, layer: int, x: Any) -> Any:
        return model.mlp_block(self.params.layers[layer], self.config, x)


CASE = strategies.Float32Case(
    BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=11),
    time=7,
    kind="holes",
)


def compare_with(kind: type[NumpyPrepared]) -> None:
    engine = Engine(CASE.params, CASE.config, POLICIES["float32"], backend="numpy")
    assert isinstance(engine.prepared, NumpyPrepared)
    engine.prepared = kind(engine.prepared.params, CASE.config)
    compare(engine, CASE, [0, 4, 6, 7])


def test_a_right_one_passes() -> None:
    compare_with(RightPrepared)


@pytest.mark.parametrize(
    "kind",
    [OffByOneBit, FirstLayerOnly, MaskIgnored, PrefixForgotten, FirstPositionScored, NormTwice, Unnamed],
    ids=lambda kind: kind.__name__,
)
def test_a_subtly_wrong_one_fails(kind: type[NumpyPrepared]) -> None:
    with pytest.raises(AssertionError, match=r"^assert \["):
        compare_with(kind)
