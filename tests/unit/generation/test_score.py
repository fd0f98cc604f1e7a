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
from bloomref.generation import scoring
from bloomref.generation.scoring import Score
from bloomref.runtime.engine import Engine

LM = text_lm()
TOKENIZER = LM.tokenizer
assert TOKENIZER is not None
TEXTS = st.text("the is,.a意é\n ", max_size=12)


def expected(lm: BloomCausalLM, ids: list[int], start: int) -> list[float]:
    """ln p of the tokens from `start` on, by the definition."""
    logits = lm.logits({"token_ids": [ids]})[0].astype(np.float64)
    return [float(logits[t - 1, ids[t]] - math.log(np.exp(logits[t - 1]).sum())) for t in range(start, len(ids))]


@settings(max_examples=40)
@given(st.data())
def test_scores_are_log_softmax_of_the_logits_and_batches_change_nothing(data: st.DataObject) -> None:
    drawn = data.draw(models())
    texts = data.draw(id_prompts(drawn.config.vocabulary_size))
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


@settings(max_examples=40)
@given(TEXTS, TEXTS)
def test_a_text_is_its_beginning_and_its_continuation(context: str, text: str) -> None:
    whole = TOKENIZER(context + text)
    stripped = TOKENIZER(context.rstrip())
    if not stripped:
        score, ids, start = LM.score(text, context=context), [1, *whole], 1
    elif text and len(whole) <= len(stripped):
        with pytest.raises(InvalidInput, match="text: expected a continuation that does not merge"):
            LM.score(text, context=context)
        return
    else:
        score, ids, start = LM.score(text, context=context), whole, len(stripped)
    assert score.token_ids == tuple(ids[start:])
    np.testing.assert_allclose(score.log_probs, expected(LM, ids, start), rtol=1e-9)
    assert score.num_bytes == sum(len(TOKENIZER.token_bytes(token_id)) for token_id in ids[start:])


def test_the_first_token_of_a_text_is_not_scored() -> None:
    assert LM.score("the is").token_ids == tuple(TOKENIZER("the is")[1:])
    assert LM.score("the is", context="").token_ids == tuple(TOKENIZER("the is"))
    assert LM.score("the").token_ids == LM.score("").token_ids == ()
    assert LM.score([5, 6]).token_ids == (6,)
    assert LM.score([5, 6], context=[]).token_ids == (5, 6)
    assert LM.score([5, 6], context=[9]).token_ids == (5, 6)


def test_white_space_of_the_context_belongs_to_the_continuation() -> None:
    assert LM.score("the", context="is ") == LM.score(" the", context="is")
    assert LM.score(" the", context="is").token_ids == (TOKENIZER.token_to_id("Ġthe"),)
    assert LM.score("the", context="is \n").token_ids == tuple(TOKENIZER("is \nthe")[1:])
    assert LM.score("a", context="  ") == LM.score("  a", context="")


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


def test_logits_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the is a the is a", "a", " the the"]
    whole = LM.score(texts, context="is")
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 3 * (TOKENS + 12))
    monkeypatch.setattr(scoring, "_POSITIONS_AT_ONCE", 12)
    shapes = []
    logits = Engine.logits
    monkeypatch.setattr(Engine, "logits", lambda self, hidden: shapes.append(hidden.shape[1]) or logits(self, hidden))
    assert LM.score(texts, context="is") == approximately(whole)
    assert max(shapes) == 3


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
        ("h", "t", "text: expected a continuation that does not merge.*got h; begin it with its own space"),
    ]
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
