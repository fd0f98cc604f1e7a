"""`bloomref score`: windows, likeliest tokens, and texts of which nothing can be scored."""

import json
from typing import Any

import pytest

from bloomref import BloomCausalLM, BloomTokenizer
from bloomref.cli import app, score

CONTEXT, TEXT = "Everyone has the right to", " life, liberty and security of person."


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert app.run(["score", *arguments, "--backend", "numpy", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_windows_and_likeliest_tokens_are_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--window", "8", "--stride", "3", "--top-logprobs", "2")
    report = answer(capsys, TEXT, "--context", CONTEXT, *options)
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    expected = lm.score(TEXT, context=CONTEXT, window=8, stride=3, top_logprobs=2)
    assert report["log_probs"] == list(expected.log_probs)
    assert expected.top_logprobs is not None
    assert lm.tokenizer is not None
    for row, top in zip(report["top_logprobs"], expected.top_logprobs, strict=True):
        assert [(token["id"], token["logprob"]) for token in row] == list(top)
        assert [token["token"] for token in row] == [lm.tokenizer.detokenize([token_id]) for token_id, _ in top]
        assert [bytes(token["bytes"]) for token in row] == [lm.tokenizer.token_bytes(token_id) for token_id, _ in top]
    assert "top_logprobs" not in answer(capsys, TEXT)


def test_an_id_without_a_token_is_listed_without_text() -> None:
    tokenizer = BloomTokenizer.from_preset("bloom_tiny_udhr")
    assert score.token_report(tokenizer, {"id": 4090, "logprob": -9.0}) == {
        "id": 4090,
        "logprob": -9.0,
        "token": None,
        "bytes": None,
    }


@pytest.mark.clause("SCO-5")
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (
            ["Everyone"],
            2,
            'got one, which no token predicts; an empty context predicts it from <s>: context="" (--context',
        ),
        (["", "--context", "Everyone"], 2, "at least one token to score, got none"),
        (["the " * 17_000], 3, "expected at most 16384 tokens without a window"),
        (["the cat", "--window", "1"], 2, "window: expected an integer >= 2"),
    ],
)
def test_no_scored_token_is_no_success(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
) -> None:
    assert app.run(["score", *arguments, "--backend", "numpy"]) == code
    said = capsys.readouterr()
    assert part in said.err
    assert said.out == ""


@pytest.mark.clause("SCO-2")
def test_the_help_has_the_rule_of_the_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["score", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Without it the first token is not scored" in words
    assert "an empty one predicts the first token from <s>" in words


def test_memory_that_ends_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("Unable to allocate 83.8 GiB")

    monkeypatch.setattr(BloomCausalLM, "from_preset", load)
    assert app.run(["score", "the cat"]) == 3
    assert capsys.readouterr().err == "bloomref: memory: Unable to allocate 83.8 GiB\n"
