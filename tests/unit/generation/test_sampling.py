"""Logits processors, truncations and draws: by definition, by a chi-square test, and against transformers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import TOKENS, text_lm

from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.options import GenerationOptions
from bloomref.generation.row_scores import Scores
from bloomref.generation.sampling import (
    argmax,
    choose,
    draw,
    log_softmax,
    min_p,
    row_seeds,
    softmax,
    top_k,
    top_p,
    truncate,
    uniform,
)

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)
SCORES = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
NUMBERS = [0.011546754286331562, 0.3035680343067586, 0.9002684531124185, 0.46292535650502586]
"""The numbers that specs/75-generation.md shows."""


def allowed(scores: Array) -> list[int]:
    return [int(i) for i in np.flatnonzero(scores > -np.inf)]


def random_scores(seed: int, size: int = 30, ties: bool = False) -> Array:
    scores = np.random.default_rng(seed).standard_normal(size) * 3
    return np.round(scores) if ties else scores


def test_truncations_by_hand() -> None:
    assert allowed(top_k(SCORES, 2)) == [0, 1]
    assert allowed(top_k(SCORES, 99)) == [0, 1, 2, 3, 4]
    assert allowed(top_k(np.array([1.0, 2.0, 1.0, 0.0]), 2)) == [0, 1, 2]
    assert allowed(top_p(SCORES, 0.69)) == [0, 1]
    assert allowed(top_p(SCORES, 0.71)) == [0, 1, 2]
    assert allowed(top_p(SCORES, 1e-9)) == [0]
    assert allowed(top_p(SCORES, 1.0)) == [0, 1, 2, 3, 4]
    assert allowed(top_p(np.zeros(4), 0.5)) == [0, 1]
    assert allowed(min_p(SCORES, 0.3)) == [0, 1, 2]
    assert allowed(min_p(SCORES, 0.0)) == [0, 1, 2, 3, 4]
    assert allowed(min_p(SCORES, 1.0)) == [0]


def test_the_order_is_temperature_top_k_top_p_min_p() -> None:
    # without the temperature, top_p=0.6 keeps two; halving it first makes 0 alone hold that much of the two
    options = GenerationOptions(temperature=0.5, top_k=2, top_p=0.6)
    assert allowed(truncate(SCORES, options)) == [0]
    assert allowed(truncate(SCORES, GenerationOptions(top_k=2, top_p=0.6))) == [0, 1]
    # top_p counts within what top_k left: 0.4 / 0.7 is enough for 0.57
    assert allowed(truncate(SCORES, GenerationOptions(top_k=2, top_p=0.57))) == [0]
    assert allowed(truncate(SCORES, GenerationOptions(top_p=0.57))) == [0, 1]


def processed(scores: Array, history: list[int], options: GenerationOptions) -> Array:
    return LogitsProcessors(options)(Scores(scores.copy()), history, 0).dense()


@pytest.mark.clause("GEN-8")
def test_processors_by_hand() -> None:
    scores = np.array([2.0, -2.0, 1.0, -1.0])
    penalized = processed(scores, [0, 1, 1], GenerationOptions(repetition_penalty=2.0))
    np.testing.assert_array_equal(penalized, [1.0, -4.0, 1.0, -1.0])
    options = GenerationOptions(logit_bias={2: -3.0, 0: -np.inf}, repetition_penalty=2.0)
    np.testing.assert_array_equal(processed(scores, [2], options), [-np.inf, -2.0, -4.0, -1.0])
    for size, history, left in ((2, [0, 1, 0, 2, 0], [0, 3]), (1, [0, 3], [1, 2]), (3, [0, 1], [0, 1, 2, 3])):
        assert allowed(processed(scores, history, GenerationOptions(no_repeat_ngram_size=size))) == left


@given(SEEDS, st.integers(1, 40), st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_a_truncation_never_empties_and_keeps_the_likeliest(seed: int, k: int, p: float, m: float, ties: bool) -> None:
    scores = random_scores(seed, ties=ties)
    for truncated in (top_k(scores, k), top_p(scores, p), min_p(scores, m)):
        left = allowed(truncated)
        assert argmax(scores) in left
        np.testing.assert_array_equal(truncated[left], scores[left])
        dropped = np.setdiff1d(np.arange(30), left)
        assert scores[left].min() >= scores[dropped].max(initial=-np.inf)


@pytest.mark.clause("GEN-7")
@given(SEEDS, st.floats(1e-6, 0.999))
def test_top_p_is_the_smallest_set_that_reaches_p(seed: int, p: float) -> None:
    scores = random_scores(seed)
    probabilities = np.sort(softmax(scores)[allowed(top_p(scores, p))])
    assert probabilities.sum() >= p - 1e-9
    assert probabilities[1:].sum() < p + 1e-9


@given(SEEDS)
def test_softmax_and_log_softmax(seed: int) -> None:
    scores = random_scores(seed) * 100
    np.testing.assert_allclose(softmax(scores).sum(), 1.0)
    np.testing.assert_allclose(np.exp(log_softmax(scores)), softmax(scores), rtol=1e-12, atol=1e-300)


def test_draws_follow_the_distribution() -> None:
    scores = np.array([0.5, -np.inf, 2.0, -1.0, 0.0, 1.0])
    numbers = np.random.default_rng(3).random(20_000)
    assert chi_square([draw(scores, number) for number in numbers], scores) < 25
    # the test notices a temperature of 0.9
    assert chi_square([draw(scores / 0.9, number) for number in numbers], scores) > 50
    # the numbers of one seed, and the first numbers of many seeds, are uniform enough
    for numbers in ([uniform(3, n) for n in range(4000)], [uniform(seed, 0) for seed in range(4000)]):
        assert chi_square([draw(scores, number) for number in numbers], scores) < 25


@pytest.mark.clause("GEN-10")
def test_a_draw_by_hand() -> None:
    """Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 of the ids in their order, whatever their rank."""
    cases = {0.0: 0, 0.39: 0, 0.41: 1, 0.69: 1, 0.71: 2, 0.84: 2, 0.86: 3, 0.94: 3, 0.96: 4, 1.0 - 2.0**-53: 4}
    assert {number: draw(SCORES, number) for number in cases} == cases
    assert [draw(SCORES[::-1], number) for number in (0.04, 0.06, 0.59, 0.61)] == [0, 1, 3, 4]
    # within the set that is left: 0.4 / 0.7 is the boundary of the first id
    left = top_k(SCORES, 2)
    assert [draw(left, number) for number in (0.57, 0.58, 1.0 - 2.0**-53)] == [0, 1, 1]


@pytest.mark.clause("GEN-9")
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_the_number_of_a_draw_is_that_of_the_clause(seed: int, drawn: int) -> None:
    """The rounds of Philox4x64-10, in Python's integers."""
    low = 2**64 - 1
    counter, key = [drawn + 1, 0, 0, 0], [seed, 0]
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [two >> 64 ^ counter[1] ^ key[0], two & low, one >> 64 ^ counter[3] ^ key[1], one & low]
        key = [(key[0] + 0x9E3779B97F4A7C15) & low, (key[1] + 0xBB67AE8584CAA73B) & low]
    assert uniform(seed, drawn) == (counter[0] >> 11) / 2**53


@pytest.mark.clause("GEN-9")
def test_numbers_of_the_clause() -> None:
    assert [uniform(0, 0), uniform(1, 0), uniform(1, 1), uniform(2**64 - 1, 5)] == NUMBERS


@pytest.mark.clause("GEN-1", "GEN-2")
def test_a_choice_of_one_token() -> None:
    greedy, sampling = GenerationOptions(), GenerationOptions(temperature=1.0)
    scores = np.array([-np.inf, 1.0, 2.0, 2.0])
    assert choose(Scores(scores), greedy, 0, 0) == 2
    drawn = {choose(Scores(scores), sampling, 0, n) for n in range(60)}
    assert drawn == {1, 2, 3}
    for options in (greedy, sampling):
        assert choose(Scores(np.full(4, -np.inf)), options, 0, 0) is None


def test_generated_tokens_follow_the_model() -> None:
    """First tokens of many rows against softmax of the processed logits: the whole path, seeds of rows included."""
    lm = text_lm()
    allowed = lm.tokenizer("abcdef the")
    bias: Any = {i: 0.0 if i in allowed else -np.inf for i in range(TOKENS)}
    rows = 4000
    options: Any = {"max_new_tokens": 1, "temperature": 2.0, "logit_bias": bias, "seed": 11, "strip_prompt": True}
    first_tokens = [ids[0] for ids in lm.generate([[5, 9]] * rows, **options)]
    logits = lm.logits({"token_ids": [[5, 9]]})[0, -1] / 2.0
    logits[[i for i in range(TOKENS + 12) if i not in allowed]] = -np.inf
    assert chi_square(first_tokens, logits) < 40


def chi_square(drawn: list[int], scores: Array) -> float:
    """Sum of (observed - expected)^2 / expected. With at most six degrees of freedom, P(> 25) < 0.001."""
    expected = len(drawn) * softmax(scores)
    observed = np.bincount(drawn, minlength=len(scores))
    possible = expected > 0
    assert not observed[~possible].any()
    return float((np.square(observed - expected)[possible] / expected[possible]).sum())


@pytest.mark.clause("GEN-6")
def test_seeds() -> None:
    lm = text_lm()
    options: Any = {"temperature": 3.0, "max_new_tokens": 8}
    assert lm.generate("a", seed=5, **options) == lm.generate("a", seed=5, **options)
    assert lm.generate(["a", "a"], seed=5, **options) == [lm.generate("a", seed=s, **options) for s in (5, 6)]
    assert lm.generate("a", seed=5, **options) != lm.generate("a", seed=6, **options)
    assert lm.generate("a", **options) != lm.generate("a", **options)
    assert lm.generate("a", seed=np.int64(5), **options) == lm.generate("a", seed=5, **options)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    lm.generate("a", **options)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]
    assert row_seeds(2**64 - 2, range(3)).tolist() == [2**64 - 2, 2**64 - 1, 0]
    assert row_seeds(2**64 + 5, [0]).tolist() == [5]
    assert len({*row_seeds(None, range(50)).tolist(), *row_seeds(None, range(50)).tolist()}) == 100


@given(
    SEEDS,
    st.sampled_from((0.3, 0.9, 1.7)),
    st.integers(1, 35),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from((0.6, 1.0, 1.8)),
    st.integers(0, 3),
)
def test_processors_are_those_of_transformers(
    seed: int, temperature: float, k: int, p: float, m: float, penalty: float, ngram: int
) -> None:
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(seed)
    scores, history = random_scores(seed), [int(i) for i in rng.integers(0, 6, 9)]
    bias = {int(i): float(rng.normal()) for i in rng.integers(0, 30, 2)}
    chain = [hf.SequenceBiasLogitsProcessor({(i,): value for i, value in bias.items()})]
    chain += [hf.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else []
    chain += [hf.NoRepeatNGramLogitsProcessor(ngram)] if ngram else []
    chain += [hf.TemperatureLogitsWarper(temperature), hf.TopKLogitsWarper(k), hf.TopPLogitsWarper(p)]
    chain += [hf.MinPLogitsWarper(m)]
    expected = torch.tensor(scores[None])
    for processor in chain:
        expected = processor(torch.tensor([history]), expected)
    options = GenerationOptions(
        temperature=temperature,
        top_k=k,
        top_p=p,
        min_p=m,
        repetition_penalty=penalty,
        no_repeat_ngram_size=ngram,
        logit_bias=bias,
    )
    warped = truncate(processed(scores, history, options), options)
    np.testing.assert_allclose(warped, expected[0].numpy(), rtol=1e-6)  # its bias is float32
