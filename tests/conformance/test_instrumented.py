"""The instrumented model equals the reference: bit for bit in one call, up to the order of sums in several calls."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.model import instrumented
from bloomref.conformance.model.instrumented import EXACT, Arithmetic, InstrumentedModel
from bloomref.conformance.model.pieces import join
from bloomref.conformance.oracle.intermediates import observable
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.strategies import cases
from bloomref.conformance.strategies_lora import adapted_cases
from bloomref.errors import InvalidInput
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.reference import lora, model, trace

SMALL = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)


def reference(case: Case, dtype: type) -> dict[str, np.ndarray]:
    params = case.params.astype(np.dtype(dtype))
    if case.lora is not None:
        parts = case.lora.adapter(case.config).parts
        kept = {
            key: tuple(replace(p, a=p.a.astype(dtype), b=p.b.astype(dtype)) for p in found)
            for key, found in parts.items()
        }
        params = lora.attach(params, kept)
    with trace.record() as seen:
        hidden = model.forward(params, case.config, case.token_ids, case.is_real)
        model.logits(params, hidden)
    return seen


@pytest.mark.clause("MOD-8", "MOD-11", "LRA-1", "LRA-4")
@given(cases(long=False) | adapted_cases(max_time=24), st.sampled_from([np.float64, np.float32]))
def test_unchanged_it_is_the_reference_bit_for_bit(case, dtype):
    wanted = reference(case, dtype)
    found = InstrumentedModel.of(case, dtype=dtype).run(case.token_ids, case.is_real)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.clause("KVC-7", "LRA-16")
@given(cases(long=False, kinds=("real", "left", "holes")) | adapted_cases(), st.integers(0, 3))
def test_in_pieces_it_is_the_same_up_to_the_order_of_sums(case, spare):
    whole, tested = truth(case).values, InstrumentedModel.of(case)
    for name, value in tested.run(case.token_ids, case.is_real, case.cuts, case.time + spare).items():
        apart = np.abs(value - whole[name])[observable(name, value, case.is_real)]
        assert np.max(apart, initial=0.0) <= 1e-9 * np.abs(whole[name]).max(), name


@given(cases(long=False, max_time=9), st.sampled_from([0, 3, 50]))
def test_an_anchor_changes_scores_by_a_constant_of_each_row_alone(case, anchor):
    right, tested = InstrumentedModel(case.config, case.params), InstrumentedModel(case.config, case.params)
    tested.anchor = anchor
    shift = tested.bias(case.is_real, 0) - right.bias(case.is_real, 0)
    assert np.abs(np.ptp(shift, axis=-1)).max(initial=0.0) < 1e-12


class Counting(Arithmetic):
    """Counts the calls of each hook."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = dict.fromkeys(("stored", "wide", "score", "matmul"), 0)

    def stored(self, x: np.ndarray) -> np.ndarray:
        self.calls["stored"] += 1
        return x

    def wide(self, x: np.ndarray) -> np.ndarray:
        self.calls["wide"] += 1
        return x

    def score(self, x: np.ndarray) -> np.ndarray:
        self.calls["score"] += 1
        return x

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.calls["matmul"] += 1
        return a @ b


@pytest.mark.parametrize(
    ("adapter", "products"),
    [(Lora(LINEARS), 8), (Lora((EMBEDDING,)), 0.5), (Lora(("query_dense", "value_dense"), form="keras"), 4)],
    ids=["linear layers", "embedding", "heads"],
)
def test_every_operation_of_an_adapter_passes_a_hook(adapter, products):
    case, plain, counted = Case(SMALL, lora=adapter), Counting(), Counting()
    InstrumentedModel(SMALL, case.params, plain).run(case.token_ids, case.is_real)
    InstrumentedModel.of(case, counted).run(case.token_ids, case.is_real)
    more = {name: counted.calls[name] - plain.calls[name] for name in plain.calls}
    layers = SMALL.num_layers
    adapted = products * layers if products < 1 else products * layers / 2
    assert more == {"matmul": products * layers, "wide": adapted, "stored": adapted, "score": 0}


def test_every_operation_passes_a_hook_of_the_arithmetic():
    case, counted = Case(SMALL), Counting()
    seen = InstrumentedModel(SMALL, case.params, counted).run(case.token_ids, case.is_real)
    assert (
        counted.calls["matmul"] == 6 * SMALL.num_layers + 1
    )  # four maps, scores and context in each layer, and the head
    assert min(counted.calls.values()) > 0
    assert (
        seen["logits"].tobytes()
        == InstrumentedModel(SMALL, case.params, EXACT).run(case.token_ids, case.is_real)["logits"].tobytes()
    )


@pytest.mark.clause("EMB-2", "ATT-11", "ATT-12")
def test_it_checks_inputs_like_bloomref():
    tested = InstrumentedModel(SMALL, Case(SMALL).params)
    ids, real = tested.accept([[1, 2]], [[0, 1]])
    assert (ids.tolist(), real.tolist()) == ([[1, 2]], [[False, True]])
    assert tested.accept([[1, 2]])[1].all()
    for ids, mask in ([[[-1]], None], [[[SMALL.vocabulary_size]], None], [[[1]], [[2]]]):
        with pytest.raises(InvalidInput):
            tested.accept(ids, mask)


def test_the_name_of_version_0_1_still_works():
    with pytest.deprecated_call(match="InstrumentedModel"):
        from bloomref.conformance.model.instrumented import Lab
    assert Lab is InstrumentedModel
    with pytest.raises(AttributeError, match="no_such"):
        instrumented.no_such  # noqa: B018


def test_columns_that_a_call_does_not_have_are_zero():
    """The later keys of scores and probabilities; a key after the last position is cut off."""
    case = Case(BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=8), time=5)
    calls = InstrumentedModel.of(case).run(case.token_ids, case.is_real, (2, 3), 9)
    for name, value in truth(case).values.items():
        assert calls[name].shape == value.shape, name
    assert np.all(calls["layers.0.attention.scores"][:, :, :2, 2:] == 0.0)
    wide = [{"layers.0.attention.scores": np.ones((1, 1, 2, 9))}]
    assert join(wide, 5)["layers.0.attention.scores"].shape == (1, 1, 2, 5)
