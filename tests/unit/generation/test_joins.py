"""The join of context and continuation: every character of the continuation is in a scored token, and the sum rule."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_tokenizer, small_vocabulary, text_lm
from ten_scripts import texts

from bloomref import BloomCausalLM, BloomTokenizer, InvalidInput
from bloomref.errors import BloomrefWarning
from bloomref.generation.pairs import Reader, read_pairs

SMALL = text_lm()
SMALL_TEXTS = st.text("the is,.a意é\n ", max_size=10)


@cache
def udhr() -> BloomTokenizer:
    return BloomTokenizer.from_preset("bloom_tiny_udhr")


def reader(tokenizer: BloomTokenizer) -> Reader:
    return Reader(tokenizer.vocabulary_size(), tokenizer.tokenize, tokenizer.lost_characters, lambda: 1)


def check_every_split(tokenizer: BloomTokenizer, text: str) -> None:
    """At every split of the text, the scored tokens end with the continuation, and begin in it or before it."""
    splits = range(len(text))
    items, _ = read_pairs(reader(tokenizer), [text[i:] for i in splits], [text[:i] for i in splits])
    whole = tokenizer(text)
    for i, item in zip(splits, items, strict=True):
        scored = item.token_ids[item.start :].tolist()
        behind = b"".join(map(tokenizer.token_bytes, scored))
        context = tokenizer(text[:i].rstrip())
        before = whole[: len(whole) - len(scored)]
        assert behind.endswith(text[i:].encode()), (text, i)
        assert whole[len(before) :] == scored
        assert context[: len(before)] == before, "the context alone explains the rest"
        assert len(context) == len(before) or context[len(before)] != scored[0], "and explains no more"
        assert item.token_ids[: item.start].tolist() == (before or [1])


@pytest.mark.clause("SCO-3")
@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1))
def test_every_character_is_scored_at_every_split(seed: int) -> None:
    check_every_split(udhr(), texts(1, seed)[0])


@pytest.mark.slow
@pytest.mark.clause("SCO-3")
def test_every_character_of_200_texts_is_scored_at_every_split() -> None:
    for text in texts(200, seed=0, length=90):
        check_every_split(udhr(), text)


@pytest.mark.clause("SCO-3", "SCO-4")
@settings(max_examples=40)
@given(SMALL_TEXTS, SMALL_TEXTS)
def test_the_whole_is_what_the_context_explains_and_the_continuation(context: str, text: str) -> None:
    """The sum rule, with log-probabilities of the whole that come from its own logits."""
    tokenizer = SMALL.tokenizer
    assert tokenizer is not None
    whole = tokenizer(context + text)
    if tokenizer(context.rstrip())[: len(whole)] == whole:  # the context alone explains all
        with pytest.raises(InvalidInput, match="text: expected at least one token to score, got none"):
            SMALL.score(text, context=context)
        return
    score = SMALL.score(text, context=context)
    before = whole[: len(whole) - len(score.token_ids)]
    ids = whole if before else [1, *whole]
    logits = SMALL.logits({"token_ids": [ids]})[0].astype(np.float64)
    log_probs = logits[:-1] - np.log(np.exp(logits[:-1]).sum(axis=-1, keepdims=True))
    each = log_probs[np.arange(len(ids) - 1), ids[1:]]
    of_context = SMALL.score(before).log_likelihood if len(before) > 1 else 0.0
    np.testing.assert_allclose(of_context + score.log_likelihood, each.sum(), rtol=1e-9)
    np.testing.assert_allclose(score.log_probs, each[-len(score.token_ids) :], rtol=1e-9)
    assert score.num_bytes == sum(len(tokenizer.token_bytes(token_id)) for token_id in score.token_ids)


@pytest.mark.clause("SCO-3")
def test_white_space_of_the_context_belongs_to_the_continuation() -> None:
    tokenizer = small_tokenizer()
    assert SMALL.score("the", context="is ") == SMALL.score(" the", context="is")
    assert SMALL.score(" the", context="is").token_ids == (tokenizer.token_to_id("Ġthe"),)
    assert SMALL.score("the", context="is \n").token_ids == tuple(tokenizer("is \nthe")[1:])
    assert SMALL.score("a", context="  ") == SMALL.score("  a", context="")


@pytest.mark.clause("SCO-2", "SCO-3")
def test_a_context_that_merges_with_the_continuation_as_a_whole_is_scored_from_the_start_token() -> None:
    assert SMALL.score("he", context="t") == SMALL.score("the", context="")


@pytest.mark.clause("SCO-5")
def test_characters_without_a_token_are_named_in_a_warning() -> None:
    vocabulary = {token: i for token, i in small_vocabulary().items() if token not in "zZ"}
    tokenizer = BloomTokenizer({token: i for i, token in enumerate(vocabulary)}, [])
    with pytest.warns(BloomrefWarning, match=r"text\[1\]: the tokenizer has no token for 'Zz', not scored"):
        read_pairs(reader(tokenizer), ["a cat", "a ZooZz"], None)
    assert tokenizer.lost_characters("a cat") == ""
    no_sign = BloomTokenizer({"<s>": 0, "h": 1}, [])
    assert (no_sign.lost_characters("h<s>"), no_sign.lost_characters("<h<s>")) == ("", "<>s")


@pytest.mark.clause("SCO-5")
def test_ids_of_another_models_tokenizer_are_refused_by_name() -> None:
    lm = BloomCausalLM(SMALL.backbone)
    of_more = Reader(5, lambda rows: [[3, 5] for _ in rows], lambda _: "", lambda: 1)
    with pytest.raises(InvalidInput, match=r"text\[0\]: expected tokens with ids in \[0, 5\).*another model"):
        read_pairs(of_more, ["a"], None)
    with pytest.raises(InvalidInput, match=r"text: .*no tokenizer"):
        lm.score("a")
