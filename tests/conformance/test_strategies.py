"""What is drawn is what an implementation takes, and shows what mistakes need to show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import MASKS, Case, snap
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.conformance.strategies import HEADS, cases, schedules
from bloomref.conformance.subject import Subject, named_weights, needs
from bloomref.conformance.tags import TAGS, tags_of
from bloomref.dtypes import floating_dtype
from bloomref.params import Params

capabilities = st.builds(
    Capabilities,
    masks=st.lists(st.sampled_from(MASKS), unique=True).map(lambda kinds: ("real", *kinds)),
    features=st.sets(st.sampled_from(FEATURES)).map(frozenset),
    max_time=st.sampled_from((None, 1, 5, 200, 280)),
)


@given(st.data(), capabilities)
def test_only_what_is_declared_is_drawn(data, able):
    adapter = InstrumentedImplementation()
    adapter.capabilities = able
    case = data.draw(cases(able))
    assert Subject(adapter, "float32").missing(case) is None
    assert needs(case) <= able.features


def drawn(count: int, **options: object) -> list[Case]:
    seen: list[Case] = []

    @settings(max_examples=count, derandomize=True, database=None)
    @given(cases(**options))
    def see(case: Case) -> None:
        seen.append(case)

    see()
    return seen


def test_everything_that_mistakes_need_is_drawn():
    seen = drawn(400)
    assert frozenset().union(*(tags_of(case) for case in seen)) == set(TAGS) - {"lora"}
    assert {case.config.num_heads for case in seen} == set(HEADS)
    assert {case.kind for case in seen} == set(MASKS)
    assert any(case.cuts == tuple(range(case.cuts[0], case.time)) for case in seen if len(case.cuts) > 2)
    assert 0.02 < np.mean([case.time > 256 for case in seen]) < 0.2


def test_limits_are_kept():
    for case in drawn(100, min_batch=2, min_time=3, max_time=7, long=False, sharp=False, kinds=("left",)):
        assert case.batch >= 2
        assert 3 <= case.time <= 7
        assert (case.qk_gain, case.kind) == (1.0, "left")


@given(st.integers(1, 40).flatmap(lambda time: st.tuples(st.just(time), schedules(time))))
def test_cuts_are_inside_and_in_order(drawn):
    time, cuts = drawn
    assert list(cuts) == sorted(set(cuts))
    assert all(0 < cut < time for cut in cuts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(case=cases(long=False))
@settings(max_examples=20)
def test_weights_are_exact_in_every_dtype_and_hide_nothing(dtype, case):
    for key, weight, array in case.params.named():
        assert np.array_equal(array.astype(floating_dtype(dtype)).astype(np.float64), array), key
        if key.endswith("bias"):
            assert np.count_nonzero(array) >= 0.9 * array.size
        elif weight.axes == "D":
            assert np.count_nonzero(array == 1.0) <= 0.1 * array.size + 1


def test_snapping_is_rounding():
    x = np.random.default_rng(0).standard_normal(1000)
    assert np.abs(snap(x) / x - 1.0).max() < 2.0**-8
    assert np.array_equal(snap(snap(x)), snap(x))


@given(cases(long=False))
@settings(max_examples=20)
def test_an_adapter_gets_the_weights_by_the_names_of_hugging_face(case):
    weights = named_weights(case.config, case.params)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    back = Params.from_named(case.config, {key.removeprefix("transformer."): array for key, array in weights.items()})
    for (_, _, one), (_, _, two) in zip(back.named(), case.params.named(), strict=True):
        assert np.array_equal(one, two)
