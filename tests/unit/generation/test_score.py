"""score: against the logits it is defined by, against transformers' loss, batch against single text."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOKENS, id_prompts, make_lm, models, text_lm

from bloomref import BloomCausalLM, BloomConfig, InvalidInput
from bloomref.errors import BadWeights
from bloomref.generation import prompts, scoring
from bloomref.generation.scoring import Score
from bloomref.runtime.engine import Engine

LM = text_lm()
TOKENIZER = LM.tokenizer
assert TOKENIZER is not None


def expected(lm: BloomCausalLM, ids: list[int], start: int) -> list[float]:
    """ln p of the tokens from `start` on, by the definition."""
    logits = lm.logits({"token_ids": [ids]})[0].astype(np.float64)
    return [float(logits[t - 1, ids[t]] - math.log(np.exp(logits[t - 1]).sum())) for t in range(start, len(ids))]


@pytest.mark.clause("SCO-1", "SCO-2", "SCO-6")
@settings(max_examples=40)
@given(st.data())
def test_scores_are_log_softmax_of_the_logits_and_batches_change_nothing(data: st.DataObject) -> None:
    drawn = data.draw(models())
    texts = data.draw(id_prompts(drawn.config.vocabulary_size, min_length=2))
    contexts = data.draw(st.none() | st.tuples(*[st.lists(st.integers(0, 2), max_size=4)] * len(texts)).map(list))
    lm = drawn.lm
    scores = lm.score(texts, context=contexts)
    for i, (text, score) in enumerate(zip(texts, scores, strict=True)):
        before = [] if contexts is None else contexts[i] or [1]
        start = 1 if contexts is None else len(before)
        np.testing.assert_allclose(score.log_probs, expected(lm, before + text, start), rtol=1e-9, atol=1e-9)
        assert score.token_ids == tuple((before + text)[start:])
        alone = lm.score([text], context=None if contexts is None else [contexts[i]])[0]
        np.testing.assert_allclose(score.log_probs, alone.log_probs, rtol=1e-11, atol=1e-11)
        assert score.is_greedy == alone.is_greedy
        assert score.num_bytes is score.bits_per_byte is None


def test_measures_by_hand() -> None:
    score = Score((7, 8), (-1.0, -2.0), False, 6)
    assert score.log_likelihood == -3.0
    assert score.perplexity == math.exp(1.5)
    assert score.bits_per_byte == 3.0 / math.log(2) / 6
    assert json.loads(json.dumps(score.to_dict())) == {
        "log_likelihood": -3.0,
        "perplexity": math.exp(1.5),
        "bits_per_byte": 3.0 / math.log(2) / 6,
        "token_ids": [7, 8],
        "log_probs": [-1.0, -2.0],
        "is_greedy": False,
        "num_bytes": 6,
    }
    nothing = Score((), (), True, 0)
    assert nothing.log_likelihood == 0.0
    assert math.isnan(nothing.perplexity)
    assert math.isnan(nothing.bits_per_byte or 0)
    assert nothing.to_dict()["perplexity"] is None
    assert Score((1,), (-1e9,), False, None).perplexity == math.inf


@pytest.mark.clause("SCO-2")
def test_the_first_token_of_a_text_is_not_scored() -> None:
    assert LM.score("the is").token_ids == tuple(TOKENIZER("the is")[1:])
    assert LM.score("the is", context="").token_ids == tuple(TOKENIZER("the is"))
    assert LM.score([5, 6]).token_ids == (6,)
    assert LM.score([5, 6], context=[]).token_ids == (5, 6)
    assert LM.score([5, 6], context=[9]).token_ids == (5, 6)


def test_forms() -> None:
    one, two = LM.score(" the", context="is"), LM.score(" a", context="is")
    assert LM.score([" the", " a"], context="is") == approximately([one, two])
    assert LM.score([" the", " a"], context=["is", "is"]) == approximately([one, two])
    assert LM.score([]) == LM.score([], context=[]) == LM.score([], context="a") == []
    assert LM.score(np.array([5, 6])).token_ids == (6,)
    assert LM.score([[5, 6], [7, 8]], context=[4, 4])[1].token_ids == (7, 8)


def approximately(scores: list[Score]) -> Any:
    class Near:
        def __eq__(self, other: object) -> bool:
            assert isinstance(other, list)
            for mine, theirs in zip(scores, other, strict=True):
                assert mine.token_ids == theirs.token_ids
                np.testing.assert_allclose(mine.log_probs, theirs.log_probs, rtol=1e-11)
            return True

    return Near()


@settings(max_examples=20)
@given(models(), st.integers(1, 5))
def test_is_greedy_is_what_greedy_generation_says(drawn: Any, length: int) -> None:
    lm = drawn.lm
    new = lm.generate([1, 2], max_new_tokens=length, stop_token_ids=None, strip_prompt=True)
    assert lm.score(new, context=[1, 2]).is_greedy
    other = [*new[:-1], (new[-1] + 1) % lm.backbone.config.vocabulary_size]
    assert not lm.score(other, context=[1, 2]).is_greedy


def test_ids_that_are_never_chosen_do_not_count_against_greedy() -> None:
    lm = text_lm(4)
    lm.backbone.engine.prepared.params.word_embedding[TOKENS:] *= 50.0
    new = lm.generate([5, 9], max_new_tokens=6, stop_token_ids=None, strip_prompt=True)
    logits = lm.logits({"token_ids": [[5, 9, *new]]})[0]
    assert logits.argmax(axis=-1).max() >= TOKENS
    assert lm.score(new, context=[5, 9]).is_greedy


def test_ids_without_a_token_are_scored_and_have_no_bytes() -> None:
    score = LM.score([5, TOKENS + 1, 6])
    assert len(score.log_probs) == 2
    assert score.num_bytes is None
    assert not score.is_greedy


@pytest.mark.clause("SCO-6")
def test_hidden_states_and_logits_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the is a the is a", "a", " the the"]
    whole = LM.score(texts, context="is")
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 3 * (TOKENS + 12))
    monkeypatch.setattr(prompts, "POSITIONS_AT_ONCE", 12)
    monkeypatch.setattr(scoring, "_PAIRS_AT_ONCE", 12 * 9)
    monkeypatch.setattr(scoring, "_POSITIONS_AT_LEAST", 1)
    shapes = []
    logits = Engine.logits
    monkeypatch.setattr(Engine, "logits", lambda self, hidden: shapes.append(hidden.shape[1]) or logits(self, hidden))
    assert LM.score(texts, context="is") == approximately(whole)
    assert max(shapes) == 3


@pytest.mark.clause("SCO-8")
@settings(max_examples=30)
@given(st.lists(st.sampled_from((0.0, 1.0, 2.0, 3.0)), min_size=1, max_size=9), st.integers(1, 12))
def test_the_likeliest_tokens_are_sorted_and_of_equal_ones_the_lowest_id_is_first(row: list[float], k: int) -> None:
    best = sorted(enumerate(row), key=lambda pair: (-pair[1], pair[0]))[:k]
    assert scoring.likeliest(np.array(row), k) == tuple(best)


@pytest.mark.clause("SCO-8")
def test_top_logprobs_are_of_the_place_of_each_scored_token() -> None:
    text = "the is a the is a"
    score = LM.score(text, context="is", top_logprobs=TOKENS + 12)
    assert LM.score(text, context="is").top_logprobs is None
    assert score.top_logprobs is not None
    for token_id, log_prob, top in zip(score.token_ids, score.log_probs, score.top_logprobs, strict=True):
        assert dict(top)[token_id] == log_prob
        assert math.isclose(sum(math.exp(x) for _, x in top), 1.0)
    assert score.to_dict()["top_logprobs"][0][0] == dict(zip(("id", "logprob"), score.top_logprobs[0][0], strict=True))


def test_transformers_loss() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from parity.hugging_face import build, in_float64

    ids = torch.tensor([TOKENIZER("the 意 is a thing, is it")])
    with in_float64(), torch.no_grad():
        loss = build(LM.backbone.config, LM.backbone.params)(ids, labels=ids).loss
    score = LM.score(ids[0].tolist())
    assert math.isclose(-score.log_likelihood / len(score.token_ids), float(loss), rel_tol=1e-6)  # its loss is float32


def test_mistakes() -> None:
    cases: list[tuple[Any, Any, str]] = [
        (3, None, "text: expected a text"),
        ({"token_ids": [[1]]}, None, "text: expected a text"),
        ([TOKENS + 12], None, rf"text: expected ids in \[0, {TOKENS + 12}\)"),
        ("a", 3, "context: expected a text"),
        ("a", [1], "context: expected text, as in `text`, got ids"),
        ([1, 2], "a", "context: expected ids, as in `text`, got text"),
        (["a", "a"], ["a"], "context: expected one, or one for each of 2 in a list, got 1"),
        ("a", ["a"], "context: expected one"),
        ("the", None, "text: expected at least one token to score, got one, which no token predicts; an empty context"),
        ("", None, "text: expected at least one token to score, got none"),
        ("", "", "text: expected at least one token to score, got none$"),
        ("", "the", "text: expected at least one token to score, got none$"),
        ([[]], [3], r"text\[0\]: expected at least one token to score, got none$"),
        (["the is", "the"], None, r"text\[1\]: expected at least one token to score"),
        (["a", ""], "is", r"text\[1\]: expected at least one token to score"),
        ([[5, 6], [TOKENS + 12]], [1], r"text\[1\]: expected ids in"),
        (["a", "a"], ["a", 3], r"context\[1\]: expected a text"),
        (["the is", "a \ud800"], None, r"text\[1\]: expected valid Unicode"),
    ]
    options: list[tuple[Any, str]] = [
        ({"window": 1}, "window: expected an integer >= 2"),
        ({"stride": 0}, "stride: expected an integer >= 1"),
        ({"window": 4, "stride": 5}, "stride: expected at most the window's 4 tokens, got 5"),
        ({"stride": 3000}, "stride: expected at most the window's 2048 tokens"),
        ({"top_logprobs": -1}, "top_logprobs: expected an integer >= 0"),
        ({"top_logprobs": True}, "top_logprobs: expected an integer"),
        ({"progress": 1}, "progress: expected True or False"),
        ({"windows": 4}, "windows: expected an argument of score.*did you mean window"),
        ({"window": 3, "stride": 3}, "stride: expected one below the window, so that a token of text is scored"),
    ]
    for arguments, message in options:
        with pytest.raises(InvalidInput, match=message):
            LM.score([6], context=[5, 5, 5], **arguments)
    for text, context, message in cases:
        with pytest.raises(InvalidInput, match=message):
            LM.score(text, context=context)
    with pytest.raises(InvalidInput, match=r"text: .*no tokenizer"):
        BloomCausalLM(LM.backbone).score("a")


def test_weights_that_overflow_are_refused() -> None:
    config = BloomConfig(vocabulary_size=5, num_layers=0, num_heads=1, hidden_dim=2, intermediate_dim=2)
    lm = make_lm(config)
    lm.backbone.params.word_embedding[0] = np.inf
    with pytest.raises(BadWeights, match="logits: expected finite numbers"):
        lm.score([1, 2, 3])
