"""The bench is the reference: the same bits, in one piece; in pieces the same up to the order of sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.lab import EXACT, Arithmetic, Lab
from bloomref.conformance.oracle import truth
from bloomref.conformance.strategies import cases
from bloomref.errors import InvalidInput
from bloomref.reference import model, trace

SMALL = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)


def reference(case: Case, dtype: type) -> dict[str, np.ndarray]:
    params = case.params.astype(np.dtype(dtype))
    with trace.record() as seen:
        hidden = model.forward(params, case.config, case.token_ids, case.is_real)
        model.logits(params, hidden)
    return seen


@pytest.mark.clause("MOD-8", "MOD-11")
@given(cases(long=False), st.sampled_from([np.float64, np.float32]))
def test_unchanged_it_is_the_reference_bit_for_bit(case, dtype):
    wanted = reference(case, dtype)
    found = Lab(case.config, case.params, dtype=dtype).run(case.token_ids, case.is_real)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.clause("KVC-7")
@given(cases(long=False, kinds=("real", "left", "holes")), st.integers(0, 3))
def test_in_pieces_it_is_the_same_up_to_the_order_of_sums(case, spare):
    whole, lab = truth(case).values, Lab(case.config, case.params)
    for name, value in lab.run(case.token_ids, case.is_real, case.cuts, case.time + spare).items():
        apart = np.abs(value - whole[name])[case.is_real] if value.ndim == 3 else 0.0
        assert np.max(apart, initial=0.0) <= 1e-9 * np.abs(whole[name]).max(), name


@given(cases(long=False, max_time=9), st.sampled_from([0, 3, 50]))
def test_an_anchor_changes_scores_by_a_constant_of_each_row_alone(case, anchor):
    right, lab = Lab(case.config, case.params), Lab(case.config, case.params)
    lab.anchor = anchor
    shift = lab.bias(case.is_real, 0) - right.bias(case.is_real, 0)
    assert np.abs(np.ptp(shift, axis=-1)).max(initial=0.0) < 1e-12


class Counting(Arithmetic):
    """Counts how often each hook is called."""

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


def test_every_operation_passes_a_hook_of_the_arithmetic():
    case, counted = Case(SMALL), Counting()
    seen = Lab(SMALL, case.params, counted).run(case.token_ids, case.is_real)
    assert (
        counted.calls["matmul"] == 6 * SMALL.num_layers + 1
    )  # four maps, scores and context in each layer, and the head
    assert min(counted.calls.values()) > 0
    assert (
        seen["logits"].tobytes() == Lab(SMALL, case.params, EXACT).run(case.token_ids, case.is_real)["logits"].tobytes()
    )


@pytest.mark.clause("EMB-2", "ATT-11", "ATT-12")
def test_its_front_door_is_that_of_bloomref():
    lab = Lab(SMALL, Case(SMALL).params)
    ids, real = lab.accept([[1, 2]], [[0, 1]])
    assert (ids.tolist(), real.tolist()) == ([[1, 2]], [[False, True]])
    assert lab.accept([[1, 2]])[1].all()
    for ids, mask in ([[[-1]], None], [[[SMALL.vocabulary_size]], None], [[[1]], [[2]]]):
        with pytest.raises(InvalidInput):
            lab.accept(ids, mask)
