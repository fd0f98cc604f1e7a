"""stream: whole characters only, and together the text of generate."""

from itertools import pairwise
from types import GeneratorType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import text_lm

from bloomref import BloomCausalLM, InvalidInput
from bloomref.generation.streaming import CharacterStream, whole_characters
from bloomref.runtime.engine import Engine

LM = text_lm()
TOKENIZER = LM.tokenizer
assert TOKENIZER is not None
# bytes of 意 (e6 84 8f), of é (c3 a9), of 😀 (f0 9f 98 80), alone and joined
BYTES = [TOKENIZER.token_to_id(token) for token in ("æ", "Ħ", "ı", "æĦ", "æĦı", "Ã", "©", "ð", "Ł", "ĺ", "Ģ", "a", "Ġ")]


@settings(max_examples=30)
@given(
    st.text(max_size=5).filter(lambda text: text.isprintable()),
    st.integers(0, 2**20),
    st.sampled_from((None, "a", ["意", "é "])),
    st.integers(1, 14),
)
def test_the_pieces_are_the_text_of_generate(prompt: str, seed: int, stops: Any, length: int) -> None:
    options: Any = {"seed": seed, "temperature": 4.0, "stop_strings": stops, "max_new_tokens": length}
    options["logit_bias"] = dict.fromkeys(BYTES, 12.0)
    pieces = list(LM.stream(prompt, **options))
    assert "".join(pieces) == LM.generate(prompt, strip_prompt=True, **options)
    assert all(pieces)
    ids = LM.generate(TOKENIZER(prompt) or [1], strip_prompt=True, **options)
    if stops is None:
        assert TOKENIZER.detokenize(ids, skip_special_tokens=True).rstrip("\ufffd") == "".join(pieces).rstrip("\ufffd")


@pytest.mark.parametrize(
    "strategy", [{}, {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 4}, {"top_p": 0.9, "seed": 1}]
)
def test_every_strategy_streams(strategy: Any) -> None:
    options: Any = strategy | {"max_new_tokens": 9, "logit_bias": dict.fromkeys(BYTES, 30.0)}
    assert "".join(LM.stream("the", **options)) == LM.generate("the", strip_prompt=True, **options)


def returned(stream: Any, values: list[Any]) -> Any:
    """Yield what `stream` yields, then append its return value."""
    values.append((yield from stream))


def test_the_return_value_is_the_number_of_generated_tokens() -> None:
    for strategy in ({}, {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 4}):
        options: Any = strategy | {"max_new_tokens": 9, "logit_bias": {TOKENIZER.end_token_id: 3.0}}
        stream, lengths = LM.stream("the", **options), []
        list(returned(stream, lengths))
        assert lengths == [len(LM.generate(TOKENIZER("the"), strip_prompt=True, **options))]


def script(monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    """Make the model generate these ids."""
    said = iter(ids)

    def next_logits(self: Engine, hidden: Any) -> Any:
        scores = Engine.project(self, hidden[:, -1]) * 0
        scores[:, next(said)] = 1.0
        return scores

    monkeypatch.setattr(Engine, "next_logits", next_logits)


def test_a_character_waits_for_its_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [TOKENIZER.token_to_id(token) for token in ("a", "æ", "Ħ", "ı", "ð", "Ł", "ĺ", "Ģ", "æĦı", "æ", "a", "Ã")]
    script(monkeypatch, ids)
    pieces = list(LM.stream("x", max_new_tokens=len(ids)))
    assert pieces == [
        "a",
        "意",
        "😀",
        "意",
        "\ufffda",
    ]  # a broken character is one U+FFFD; an unfinished one is not shown


def test_special_tokens_are_not_text(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [TOKENIZER.token_to_id(token) for token in ("æ", "<pad>", "Ħ", "ı", "</s>")])
    assert list(LM.stream("x")) == ["意"]


def test_a_piece_comes_before_the_next_token_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, *rest: calls.append(1) or run(self, *rest))
    pieces = LM.stream("x", max_new_tokens=100, logit_bias=dict.fromkeys(TOKENIZER("abc"), 100.0))
    assert not calls
    next(pieces)
    next(pieces)
    assert len(calls) == 2
    assert isinstance(pieces, GeneratorType)
    pieces.close()
    assert list(pieces) == []
    assert len(calls) == 2


def test_mistakes_are_refused_before_the_first_piece() -> None:
    with pytest.raises(InvalidInput, match="prompt: expected a text, or the ids of one"):
        LM.stream(["a"])  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="prompt: expected a text, or the ids of one and a tokenizer"):
        BloomCausalLM(LM.backbone).stream([1, 2])
    with pytest.raises(InvalidInput, match=r"top_p: .*got 2"):
        LM.stream("a", top_p=2)
    with pytest.raises(InvalidInput, match="max_length: expected more than the 3 tokens"):
        LM.stream("abc", 3)
    with pytest.raises(InvalidInput, match=r"prompt: .*no tokenizer"):
        BloomCausalLM(LM.backbone).stream("a")


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_bytes_cut_anywhere_are_the_same_characters(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = CharacterStream()
    text = "".join(stream.push(data[a:b]) for a, b in pairwise(edges))
    assert text == whole_characters(data)
    rest = stream._decoder.decode(b"", final=True)  # of up to three bytes that may begin a character
    assert text + rest == data.decode("utf-8", "replace")
    assert set(rest) <= {"\ufffd"}
    assert len(rest) <= 3


@given(st.binary(max_size=30))
def test_broken_bytes_are_decoded_as_the_tokenizer_does(data: bytes) -> None:
    tokens = {TOKENIZER.token_bytes(i): i for i in range(4, 260)}
    assert TOKENIZER.detokenize([tokens[bytes([byte])] for byte in data]) == data.decode("utf-8", "replace")


@given(st.text(max_size=20))
def test_whole_texts_pass_unchanged(text: str) -> None:
    assert whole_characters(text.encode("utf-8", "ignore")) == text.encode("utf-8", "ignore").decode()


def test_the_ids_of_a_text_are_continued_as_the_text() -> None:
    pieces = list(LM.stream("the a", max_new_tokens=5))
    assert list(LM.stream(TOKENIZER("the a"), max_new_tokens=5)) == pieces
