"""The fast choice of a token is that of the definitions over the whole vocabulary (`plain_choice`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import plain_choice
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bloomref import GenerationOptions
from bloomref.generation import partial_selection, sampling, shortlist
from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.row_scores import Scores

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of a few entries, so that rows of a hundred have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_selection, "BLOCK", 4)
        patch.setattr(shortlist, "NUCLEUS_SIZES", (2, 8))
        yield


@st.composite
def rows(draw: st.DrawFn) -> Any:
    """Scores in both dtypes, with ties, -inf, a steep or a flat distribution; now and then a single possible token."""
    rng, size = np.random.default_rng(draw(SEEDS)), draw(st.integers(1, 150))
    scores = rng.standard_normal(size) * draw(st.sampled_from((0.0, 0.1, 3.0, 30.0)))
    if draw(st.booleans()):
        scores = np.round(scores)
    scores[rng.random(size) < draw(st.sampled_from((0.0, 0.3, 1.0)))] = -np.inf
    scores[rng.integers(size)] = rng.normal()
    return scores.astype(draw(st.sampled_from(("float32", "float64"))))


TRUNCATIONS: Any = st.fixed_dictionaries(
    {"do_sample": st.just(True)},
    optional={
        "temperature": st.sampled_from((1e-3, 0.3, 0.8, 1.0, 1.7, 1e3, 1e300)),
        "top_k": st.integers(1, 200),
        "top_p": st.one_of(st.floats(1e-3, 1.0), st.sampled_from((0.5, 0.9, 1.0))),
        "min_p": st.one_of(st.floats(0.0, 1.0), st.sampled_from((0.0, 1e-3, 1.0))),
        "typical_p": st.floats(0.05, 1.0),
    },
)


@pytest.mark.clause("GEN-7", "GEN-10", "GEN-13")
@settings(max_examples=60)
@given(rows(), TRUNCATIONS, SEEDS, st.integers(0, 99))
@example(np.log(np.array([0.5, 0.25, 0.25])), {"top_p": 0.5}, 1, 0)
@example(np.zeros(149, np.float32), {"top_k": 3, "top_p": 0.5}, 2, 1)
@example(np.zeros(149, np.float32), {"top_p": 0.01}, 3, 1)
def test_a_draw_is_that_of_all_scores(scores: Any, truncations: Any, seed: int, drawn: int) -> None:
    options = GenerationOptions(**truncations)
    plain = plain_choice.truncate(scores, options)
    before = scores.copy()
    expected = plain_choice.draw(plain, sampling.uniform(seed, drawn))
    assert sampling.choose(Scores(scores), options, seed, drawn) == expected
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(sampling.truncate(scores, options), plain)


PROCESSORS: Any = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 5)},
    optional={
        "repetition_penalty": st.sampled_from((0.6, 1.3)),
        "no_repeat_ngram_size": st.integers(1, 3),
        "logit_bias": st.dictionaries(st.integers(0, 9), st.sampled_from((-np.inf, -2.5, 0.1, 7.0)), max_size=4),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=4),
        "suppress_tokens": st.lists(st.integers(0, 9), max_size=4),
        "begin_suppress_tokens": st.lists(st.integers(0, 9), max_size=4),
        "min_new_tokens": st.integers(0, 3),
        "min_length": st.integers(0, 5),
        "forced_bos_token_id": st.integers(0, 9),
        "forced_eos_token_id": st.lists(st.integers(0, 9), min_size=1, max_size=3),
    },
)


@pytest.mark.clause("GEN-8", "GEN-14", "GEN-20")
@settings(max_examples=60)
@given(rows(), PROCESSORS, TRUNCATIONS, st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_processed_scores_and_their_choice_are_those_of_all_scores(
    scores: Any, processors: Any, truncations: Any, history: list[int], data: st.DataObject
) -> None:
    """Bit for bit, although only the ids concerned are touched; greedy search, draws and the highest scores."""
    assume(scores.size >= 10)
    length = data.draw(st.integers(max(1, len(history) - 4), len(history)))
    stop_ids = set(data.draw(st.lists(st.integers(0, 9), max_size=2)))
    options = GenerationOptions(**processors, **truncations)
    greedy = GenerationOptions(**processors)
    plain = plain_choice.process(options, stop_ids, scores, history, length)
    processed = LogitsProcessors(options, stop_ids)(Scores(scores.copy()), history, length)
    np.testing.assert_array_equal(processed.dense(), plain)
    if plain.max() == -np.inf:
        assert sampling.choose(processed, greedy, 0, 0) is sampling.choose(processed, options, 0, 0) is None
        return
    assert sampling.choose(processed, greedy, 0, 0) == int(plain.argmax())
    seed = data.draw(SEEDS)
    expected = plain_choice.draw(plain_choice.truncate(plain, options), sampling.uniform(seed, 5))
    assert sampling.choose(processed, options, seed, 5) == expected


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 5, "top_p": 0.9}])
def test_a_draw_does_not_convert_all_scores(truncation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Scores(np.random.default_rng(0).standard_normal(500).astype(np.float32) * 4)
    monkeypatch.setattr(Scores, "dense", None)
    options = GenerationOptions(temperature=1.5, **truncation)
    assert len({sampling.choose(scores, options, seed, 0) for seed in range(20)}) > 1


@settings(max_examples=50)
@given(rows(), st.integers(1, 160), st.floats(-50.0, 50.0))
def test_highest_contains_the_highest_and_little_else(scores: Any, count: int, added: float) -> None:
    """Also where numbers are added which make different scores equal; and `at_least` those above a threshold."""
    row = Scores(scores.astype(np.float32), peak=float(scores.max()), log_total=np.pi)
    ids, values = row.highest(count, abs(added))
    dense = row.dense()
    np.testing.assert_array_equal(values, dense[ids])
    assert (np.diff(ids) > 0).all()
    possible = dense[dense > -np.inf] + added
    lowest = np.sort(possible)[-min(count, possible.size)]
    expected = np.flatnonzero((dense + added >= lowest) & (dense > -np.inf))
    assert set(expected) <= set(ids)
    assert (dense[ids] + added >= lowest - 1e-5 * (1 + np.abs(lowest) + np.abs(scores.max()))).all()
    threshold = float(dense[ids].min())
    assert set(np.flatnonzero(dense >= threshold)) <= set(row.at_least(threshold)[0])


@settings(max_examples=30)
@given(rows(), st.sampled_from((0.3, 1.0, 4.0)))
def test_exponential_sums_are_those_of_the_blocks(scores: Any, temperature: float) -> None:
    weights = np.exp((scores.astype(np.float64) - np.float64(scores.max())) / temperature)
    expected = [weights[first : first + 4].sum() for first in range(0, scores.size, 4)]
    np.testing.assert_allclose(partial_selection.exponential_sums(scores, temperature), expected, rtol=1e-12)
