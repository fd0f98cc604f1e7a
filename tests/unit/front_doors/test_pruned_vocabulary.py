"""Tokenizers that do not fit: larger than the embedding, without some bytes, with merges of removed tokens, missing."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloomref import BloomBackbone, BloomCausalLM, BloomTokenizer
from bloomref.cli.app import run
from bloomref.errors import BadWeights, BloomrefWarning, InvalidInput
from bloomref.formats.tokenizers.byte_alphabet import BYTES, missing_bytes, named_bytes
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json

SPELLING = {byte: character for character, byte in BYTES.items()}
Vocabulary = dict[str, int]


def vocabulary(*without: int, more: tuple[str, ...] = ()) -> Vocabulary:
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(SPELLING[b] for b in range(256) if b not in without), *more]
    return {token: index for index, token in enumerate(tokens)}


def write(folder: Path, tokens: Vocabulary, merges: tuple[str, ...] = ()) -> Path:
    text = json.dumps(bloom_tokenizer_json(tokens, list(merges)))
    (folder / "tokenizer.json").write_text(text, "utf-8")
    return folder


# --- larger than the embedding -----------------------------------------------------------------------------------

LM = BloomCausalLM(BloomBackbone(260, 1, 2, 4, 8), BloomTokenizer(vocabulary(more=("ab", "cd")), ["a b", "c d"]))
NEEDS_MORE: dict[str, Callable[[str], Any]] = {
    "generate": lambda text: LM.generate(text, max_new_tokens=1),
    "stream": lambda text: list(LM.stream(text, max_new_tokens=1)),
    "score": lambda text: LM.score(text),
    "context": lambda text: LM.score(" x", context=text),
    "fit": lambda text: LM.fit([text] * 2, steps=1, batch=1, context=8),
}


@pytest.mark.parametrize("door", NEEDS_MORE)
@pytest.mark.parametrize("text", ["x ab", "abcd y"])
def test_an_id_beyond_the_embedding_is_refused_when_it_occurs(door: str, text: str) -> None:
    assert LM.tokenizer is not None
    assert LM.tokenizer.vocabulary_size() == 262
    with pytest.raises(InvalidInput, match=r"ids in \[0, 260\).*, got 26[01]"):
        NEEDS_MORE[door](text)


def test_other_texts_run_with_a_larger_tokenizer() -> None:
    assert LM.generate("x a b", max_new_tokens=2).startswith("x a b")
    assert LM.score("a c b d").num_bytes == 6


# --- missing bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ((ord("Z"),), "the bytes 'Z':"),
        ((ord("Q"), ord(" "), 0xE6), "the bytes ' ', 'Q', 0xE6:"),
        (tuple(range(0x80, 0xC0)), "the bytes 0x80, 0x81, .* and 52 more:"),
        ((0x0A,), "the bytes 0x0A:"),
    ],
)
def test_missing_bytes_are_named_once_at_load(tmp_path: Path, gone: tuple[int, ...], words: str) -> None:
    write(tmp_path, vocabulary(*gone))
    with pytest.warns(BloomrefWarning, match=words) as caught:
        tokenizer = BloomTokenizer.from_preset(tmp_path)
    assert len(caught) == 1
    lost = bytes(gone[:1])
    assert tokenizer.detokenize(tokenizer.tokenize(f"a{lost.decode('latin-1')}b")) != f"a{lost.decode('latin-1')}b"


def test_a_whole_alphabet_and_bytes_that_utf8_never_uses_are_no_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BloomTokenizer.from_preset("bloom_tiny_udhr")
        BloomTokenizer.from_preset(write(tmp_path, vocabulary(0xC0, 0xC1, *range(0xF5, 0x100))))
    assert missing_bytes(vocabulary()) == []
    assert named_bytes([0x41, 0x7F]) == "'A', 0x7F"


def test_the_command_line_shows_the_warning_as_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BloomBackbone(260, 1, 2, 4, 8).save_to_preset(tmp_path / "model")
    write(tmp_path / "model", vocabulary(ord("Z")))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(["score", "a b", "-m", str(tmp_path / "model"), "--backend", "numpy"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "warning" in line] == [
        f"bloomref: warning: {tmp_path / 'model'}: the tokenizer has no token for the bytes 'Z': a text with one of "
        "them loses it"
    ]


# --- merges and missing files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merges", "token", "count"),
    [(("a b",), "ab", 1), (("c d", "a b", "ab c"), "ab", 2), (("x yy",), "yy", 1)],
)
def test_merges_of_removed_tokens_are_named(tmp_path: Path, merges: tuple[str, ...], token: str, count: int) -> None:
    write(tmp_path, vocabulary(more=("cd", "abc", "xyy")), merges)
    with pytest.raises(BadWeights, match=f"without '{token}', like {count} of {len(merges)} merges; whoever removed"):
        BloomTokenizer.from_preset(tmp_path)


def test_merges_without_a_mistake_leave_the_library_s_message(tmp_path: Path) -> None:
    write(tmp_path, vocabulary())
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["dropout"] = "much"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(BadWeights, match=r"expected a tokenizer\.json of Hugging Face's tokenizers"):
        BloomTokenizer.from_preset(tmp_path)


@pytest.mark.parametrize("beside", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_folder_that_lacks_only_tokenizer_json_says_so(tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).write_text("{}")
    with pytest.warns(BloomrefWarning, match=rf"{beside} without tokenizer\.json: .*; download it again"):
        assert BloomTokenizer.find(tmp_path) is None
