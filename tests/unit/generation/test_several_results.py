"""Several results of a prompt: draws, beams, the best of several draws; and the ends of beam search."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_search import slow_generate
from small_models import id_prompts, make_lm, models, text_lm

from bloomref import BloomConfig, InvalidInput

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()
SAMPLING: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 2}


@pytest.mark.clause("GEN-11")
@settings(max_examples=5)
@given(st.data(), st.integers(1, 3), st.integers(0, 2**32))
def test_every_result_draws_as_a_single_prompt_with_its_own_seed(data: st.DataObject, n: int, seed: int) -> None:
    prompts = data.draw(id_prompts(20, max_batch=3))
    alone = [
        LM.generate([prompt], seed=seed + i * n + j, **SAMPLING)[0]
        for i, prompt in enumerate(prompts)
        for j in range(n)
    ]
    assert LM.generate(prompts, num_return_sequences=n, seed=seed, **SAMPLING) == alone


@pytest.mark.clause("GEN-11")
@settings(max_examples=5)
@given(st.data(), st.integers(2, 4))
def test_the_results_of_beam_search_are_its_best_hypotheses(data: st.DataObject, beams: int) -> None:
    """Best first; the first is the single result; each is what its prompt gives alone; and their scores descend."""
    lm = data.draw(models()).lm
    prompts = data.draw(id_prompts(lm.backbone.config.vocabulary_size, max_batch=2, min_length=1))
    options: Any = {"num_beams": beams, "max_new_tokens": 3, "stop_token_ids": None}
    results = lm.generate(prompts, num_return_sequences=2, **options)
    assert results[::2] == lm.generate(prompts, **options)
    assert results == [row for p in prompts for row in lm.generate([p], num_return_sequences=2, **options)]
    for prompt, first, second in zip(prompts, results[::2], results[1::2], strict=True):
        better, worse = (lm.score([row[len(prompt) :]], context=[prompt])[0].log_likelihood for row in (first, second))
        assert better >= worse - 1e-9
        assert first != second


def test_texts_ids_and_dictionaries_have_n_results_side_by_side() -> None:
    options: Any = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 2}
    texts = TEXT_LM.generate(["a", "th"], **options)
    assert [text[:1] for text in texts] == ["a", "a", "t", "t"]
    assert TEXT_LM.generate("a", **options) == texts[:2]
    rows = LM.generate([[1, 2], [3]], **options)
    assert LM.generate([1, 2], **options) == rows[:2]
    batch = LM.generate({"token_ids": [[1, 2], [3, 0]], "padding_mask": [[1, 1], [1, 0]]}, pad_token_id=9, **options)
    assert [list(r[m]) for r, m in zip(batch["token_ids"], batch["padding_mask"], strict=True)] == rows
    assert set(batch["token_ids"][~batch["padding_mask"]]) <= {9}


@pytest.mark.clause("GEN-12")
@settings(max_examples=5)
@given(st.data(), st.integers(2, 4), st.integers(1, 2), st.integers(0, 99))
def test_the_best_of_several_draws_has_the_highest_mean_log_probability(
    data: st.DataObject, b: int, n: int, seed: int
) -> None:
    prompts = data.draw(id_prompts(20, max_batch=2, min_length=1))
    draws = LM.generate(prompts, num_return_sequences=b, seed=seed, strip_prompt=True, **SAMPLING)
    expected = []
    for i, prompt in enumerate(prompts):
        own = draws[i * b : i * b + b]
        scores = LM.score(own, context=[prompt] * b)
        means = [score.log_likelihood / len(score.token_ids) for score in scores]
        expected += [own[j] for j in sorted(range(b), key=lambda j: -round(means[j], 9))[:n]]
    best = LM.generate(prompts, best_of=b, num_return_sequences=n, seed=seed, strip_prompt=True, **SAMPLING)
    assert best == expected


def test_best_of_selects_sampling() -> None:
    expected = LM.generate([1, 2], best_of=3, do_sample=True, seed=4, max_new_tokens=3)
    assert LM.generate([1, 2], best_of=3, seed=4, max_new_tokens=3) == expected
    assert LM.generate([1, 2], best_of=1, max_new_tokens=3) == LM.generate([1, 2], max_new_tokens=3)


def test_a_draw_without_tokens_is_the_worst() -> None:
    nothing: Any = dict.fromkeys(range(20), -float("inf"))
    assert LM.generate([5], best_of=3, logit_bias=nothing, **SAMPLING) == [5]


@pytest.mark.clause("GEN-15")
@pytest.mark.parametrize("early", [True, "never", None])
@pytest.mark.parametrize("seed", range(4))
def test_early_stopping_against_recomputation(early: Any, seed: int) -> None:
    options: dict[str, Any] = {"num_beams": 2 + seed % 2, "length_penalty": (-1.0, 0.5, 2.0)[seed % 3]}
    options |= {"max_new_tokens": 7, "stop_token_ids": [4, 5, 6], "early_stopping": early}
    options["logit_bias"] = dict.fromkeys((4, 5, 6), 3.0)
    lm = make_lm(CONFIG, seed)
    assert lm.generate([1, 2], strip_prompt=True, **options) == slow_generate(lm, [1, 2], **options)


def test_early_stopping_matters() -> None:
    """The three ends give three results on some model: the test above can fail."""
    options: Any = {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 7, "stop_token_ids": [4, 5, 6]}
    options |= {"logit_bias": dict.fromkeys((4, 5, 6), 3.0), "num_return_sequences": 2}
    drawn = [make_lm(CONFIG, seed) for seed in range(6)]
    at_once, now, never = (
        [lm.generate([1, 2], early_stopping=e, **options) for lm in drawn] for e in (True, False, "never")
    )
    assert at_once != now != never != at_once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences: expected 1 with greedy search"),
        ({"num_return_sequences": 2, "penalty_alpha": 0.5, "top_k": 3}, "1 with contrastive search"),
        ({"num_return_sequences": 4, "num_beams": 3}, "at most num_beams=3, got 4"),
        ({"num_return_sequences": 0}, "an integer >= 1"),
        ({"best_of": 2, "do_sample": False}, "best_of: expected sampling"),
        ({"best_of": 2, "temperature": 0}, "best_of: expected sampling"),
        ({"best_of": 2, "num_beams": 2}, "best_of: expected sampling"),
        ({"best_of": 2, "num_return_sequences": 3, "do_sample": True}, "at most best_of=2, got 3"),
        ({"early_stopping": True}, "none without beam search"),
        ({"early_stopping": "always", "num_beams": 2}, "True, False or 'never'"),
        ({"do_sample": True, "num_beams": 2}, "beam search draws nothing"),
    ],
)
def test_what_cannot_have_several_results_says_so(options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LM.generate([1], max_new_tokens=2, **options)


def test_a_stream_has_one_result() -> None:
    for options in ({"num_return_sequences": 2}, {"best_of": 2}):
        with pytest.raises(InvalidInput, match="stream: expected one result"):
            TEXT_LM.stream("a", do_sample=True, **options)


def test_a_prompt_is_read_once_for_all_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = LM.backbone.engine
    shapes: list[Any] = []
    run = engine.run
    monkeypatch.setattr(
        engine, "run", lambda cache, start, ids, *rest: shapes.append(ids.shape) or run(cache, start, ids, *rest)
    )
    LM.generate([[1] * 5], num_return_sequences=3, stop_token_ids=None, seed=0, **SAMPLING)
    assert shapes == [(1, 5), (3, 1)]
