"""Drawn cases are within the capabilities of an implementation, and cover everything that shows mistakes."""

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import MASKS, Case, draw_params, snap
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.conformance.strategies import ELEMENTS, HEADS, LONG, cases, schedules, times
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
    drawn_cases: list[Case] = []

    @seed(0)  # whatever --hypothesis-seed says, and however this file changes
    @settings(max_examples=count, database=None)
    @given(cases(**options))
    def draw(case: Case) -> None:
        drawn_cases.append(case)

    draw()
    return drawn_cases


def test_everything_that_mistakes_need_is_drawn():
    drawn_cases = drawn(400)
    assert frozenset().union(*(tags_of(case) for case in drawn_cases)) == set(TAGS) - {"lora"}
    assert {case.config.num_heads for case in drawn_cases} == set(HEADS)
    assert {case.kind for case in drawn_cases} == set(MASKS)
    assert any(case.cuts == tuple(range(case.cuts[0], case.time)) for case in drawn_cases if len(case.cuts) > 2)
    assert 1 <= sum(case.time > 256 for case in drawn_cases) < 80, "long sequences are slow: occasional, not usual"


@given(st.data(), st.sampled_from(HEADS), st.sampled_from((None, 3, 24, 200, 280)))
def test_lengths_are_usual_ones_or_long_ones_that_stay_cheap(data, heads, longest):
    time = data.draw(times(heads, (2, 24), longest))
    assert time <= (longest or time)
    assert 2 <= time <= 24 or (time in LONG and heads * time * time <= ELEMENTS)


def test_draws_respect_their_limits():
    for case in drawn(100, min_batch=2, min_time=3, max_time=7, long=False, sharp=False, kinds=("left",)):
        assert case.batch >= 2
        assert 3 <= case.time <= 7
        assert (case.qk_gain, case.kind) == (1.0, "left")


@given(st.integers(1, 40).flatmap(lambda time: st.tuples(st.just(time), schedules(time))))
def test_cuts_are_inside_and_in_order(drawn):
    time, cuts = drawn
    assert list(cuts) == sorted(set(cuts))
    assert all(0 < cut < time for cut in cuts)


def unrounded(case: Case) -> Params:
    return draw_params(case.config, case.seed, case.gain, case.qk_gain, case.embedding_std, case.offset)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(case=cases(long=False))
@settings(max_examples=20)
def test_weights_are_exact_in_every_dtype(dtype, case):
    for key, _, array in case.params.named():
        assert np.array_equal(array.astype(floating_dtype(dtype)).astype(np.float64), array), key


@given(case=cases(long=False))
@settings(max_examples=20)
def test_weights_hide_nothing(case):
    """No number is drawn neutral (a bias of 0, a LayerNorm weight of 1), and each is then rounded to the nearest
    bfloat16.

    Single numbers may be neutral after rounding, in any case and any number of them: so the property is about both
        steps.
    """
    for (key, weight, array), (_, _, drawn) in zip(case.params.named(), unrounded(case).named(), strict=True):
        is_norm_weight = weight.axes == "D" and key.endswith("weight")
        assert not (drawn == (1.0 if is_norm_weight else 0.0)).any(), key
        assert (np.abs(array - drawn) <= np.maximum(2.0**-8 * np.abs(drawn), 2.0**-17)).all(), key


def test_weights_that_hide_something_are_noticed(monkeypatch):
    case = Case(BloomConfig(vocabulary_size=5, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=3))
    check = test_weights_hide_nothing.hypothesis.inner_test
    check(case)
    drawn = unrounded(case)
    monkeypatch.setattr(f"{__name__}.unrounded", lambda _: drawn.map(lambda array: array * 0.0))
    with pytest.raises(AssertionError):
        check(case)


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
