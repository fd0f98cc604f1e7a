"""BloomTokenizer: the ids of transformers' tokenizer, from every file layout; lossless; refusals."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MERGES, SPECIALS, TOKENS, small_tokenizer, small_vocabulary

from bloomref import BloomTokenizer
from bloomref.errors import BadWeights, InvalidInput
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tokenizer_ids.json").read_text("utf-8"))
PRESET = Path(__file__).parents[3] / "bloomref" / "presets" / "bloom_tiny_udhr"
SMALL = small_tokenizer()
EMBEDDED = BloomTokenizer.from_preset("bloom_tiny_udhr")
TOKENS_OF = small_vocabulary()
# characters of the scripts of BLOOM's languages, its punctuation, spaces of all kinds, pieces of special tokens
SCRIPTS = st.characters(exclude_categories=("Cs",)) | st.sampled_from(
    list("the is, .。،।۔、…()|[] \n\t\u00a0意人और他한국كلஒ😀<s>/pad")
)
TEXTS = st.lists(
    SCRIPTS | st.sampled_from(SPECIALS) | st.sampled_from(("the ", " the", "  ", "\n\n")), max_size=12
).map("".join)


# --- what the ids are ----------------------------------------------------------------------------


def test_golden_ids_of_transformers() -> None:
    assert GOLDEN["merges"] == MERGES
    for text, ids in GOLDEN["ids"].items():
        assert SMALL(text) == ids
    assert SMALL(list(GOLDEN["ids"])) == list(GOLDEN["ids"].values())


def test_the_pattern_separates_what_merges_would_join() -> None:
    assert tokens("a, the") == ["a", ",", "Ġthe"]
    assert tokens("(a|is)") == ["(", "a", "|", "is", ")"]
    assert tokens("the the") == ["the", "Ġthe"]
    assert tokens("意。") == ["æĦı", "ãĢĤ"]
    assert tokens("a\n\n is") == ["a", "ĊĊ", "Ġis"]


def tokens(text: str) -> list[str]:
    return [SMALL.id_to_token(token_id) for token_id in SMALL(text)]


@settings(max_examples=300)
@given(TEXTS)
def test_nothing_is_lost(text: str) -> None:
    ids = SMALL(text)
    assert SMALL.detokenize(ids) == text
    assert all(0 <= token_id < SMALL.vocabulary_size() for token_id in ids)
    skipped = SMALL.detokenize(ids, skip_special_tokens=True)
    assert skipped == b"".join(map(SMALL.token_bytes, ids)).decode()
    for special in SPECIALS:
        text = text.replace(special, "\0" * 9)
    assert skipped == text.replace("\0" * 9, "")


@pytest.fixture(scope="module")
def peer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(PRESET)


@settings(max_examples=300)
@given(text=TEXTS, skip=st.booleans())
def test_transformers_says_the_same(peer: Any, text: str, skip: bool) -> None:
    ids = EMBEDDED(text)
    assert ids == peer(text)["input_ids"]
    assert EMBEDDED.detokenize(ids, skip) == peer.decode(ids, skip_special_tokens=skip)


@given(st.lists(st.integers(0, EMBEDDED.vocabulary_size() - 1), max_size=12), st.booleans())
def test_transformers_reads_any_ids_the_same(peer: Any, ids: list[int], skip: bool) -> None:
    assert EMBEDDED.detokenize(ids, skip) == peer.decode(ids, skip_special_tokens=skip)


def test_transformers_names_the_same_tokens(peer: Any) -> None:
    assert len(peer) == EMBEDDED.vocabulary_size()
    assert peer.get_vocab() == {token: i for i, token in enumerate(EMBEDDED.get_vocabulary())}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(EMBEDDED, name) == getattr(peer, name)


# --- forms ---------------------------------------------------------------------------------------


def test_one_or_many() -> None:
    assert SMALL("the") == SMALL.tokenize("the") == SMALL.encode("the") == [TOKENS_OF["the"]]
    assert SMALL(["the", "", "a"]) == [[TOKENS_OF["the"]], [], [TOKENS_OF["a"]]]
    assert SMALL([]) == []
    assert SMALL("") == []
    assert SMALL.detokenize([]) == ""
    assert SMALL.decode([[TOKENS_OF["a"]], []]) == ["a", ""]
    assert all(type(token_id) is int for token_id in SMALL("abc"))


def test_numpy_ids() -> None:
    import numpy as np

    ids = np.array(SMALL("the 意"), np.int32)
    assert SMALL.detokenize(ids) == "the 意"
    assert SMALL.detokenize(np.stack([ids, ids])) == ["the 意"] * 2


def test_vocabulary() -> None:
    assert SMALL.vocabulary_size() == TOKENS == len(SMALL.get_vocabulary())
    assert SMALL.get_vocabulary() == list(TOKENS_OF)
    assert [SMALL.token_to_id(token) for token in SMALL.get_vocabulary()] == list(range(TOKENS))
    assert SMALL.id_to_token(5) == SMALL.get_vocabulary()[5]
    assert (SMALL.unk_token_id, SMALL.start_token_id, SMALL.end_token_id, SMALL.pad_token_id) == (0, 1, 2, 3)
    assert (SMALL.bos_token_id, SMALL.eos_token_id) == (1, 2)
    assert repr(SMALL) == f"BloomTokenizer: {TOKENS} tokens"


def test_special_tokens_are_whole_and_optional() -> None:
    assert tokens("a<s>the</s><pad><unk>") == ["a", "<s>", "the", "</s>", "<pad>", "<unk>"]
    plain = BloomTokenizer({"a": 0, "<": 1, "s": 2, ">": 3}, [])
    assert plain("<s>") == [1, 2, 3]
    assert plain.start_token_id is plain.end_token_id is plain.pad_token_id is plain.unk_token_id is None


def test_bytes_of_tokens() -> None:
    assert [SMALL.token_bytes(i) for i in range(4)] == [b""] * 4
    assert sorted(SMALL.token_bytes(i) for i in range(4, 260)) == [bytes([byte]) for byte in range(256)]
    assert SMALL.token_bytes(TOKENS_OF["æĦ"]) == "意".encode()[:2]
    assert SMALL.detokenize([TOKENS_OF["æĦ"]]) == "\ufffd"


def test_a_copy() -> None:
    copy = pickle.loads(pickle.dumps(SMALL))
    assert copy("the 意</s>") == SMALL("the 意</s>")
    assert copy.end_token_id == 2


# --- files ---------------------------------------------------------------------------------------


def hugging_face(folder: Path, **changes: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(bloom_tokenizer_json(TOKENS_OF, MERGES) | changes), "utf-8")
    return folder


def keras(folder: Path, merges: str = "#version: 0.2\n" + "\n".join(MERGES) + "\n") -> Path:
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    (assets / "vocabulary.json").write_text(json.dumps(TOKENS_OF), "utf-8")
    (assets / "merges.txt").write_text(merges, "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps({"registered_name": "keras_hub>BloomTokenizer"}))
    return folder


def same(tokenizer: BloomTokenizer) -> None:
    assert tokenizer.get_vocabulary() == SMALL.get_vocabulary()
    assert tokenizer(list(GOLDEN["ids"])) == list(GOLDEN["ids"].values())
    assert tokenizer.end_token_id == 2


def test_both_layouts(tmp_path: Path) -> None:
    same(BloomTokenizer.from_preset(hugging_face(tmp_path)))
    same(BloomTokenizer.from_preset(str(keras(tmp_path / "keras"))))
    assets = tmp_path / "keras" / "assets" / "tokenizer"
    same(BloomTokenizer(assets / "vocabulary.json", str(assets / "merges.txt")))
    same(BloomTokenizer(TOKENS_OF, [tuple(merge.split()) for merge in MERGES]))


def test_what_is_saved_loads_here_and_in_transformers(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    same(BloomTokenizer.from_preset(tmp_path))
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(list(GOLDEN["ids"]))["input_ids"] == list(
        GOLDEN["ids"].values()
    )


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    same(
        BloomTokenizer.from_preset(
            hugging_face(tmp_path, padding=padding | {"pad_to_multiple_of": None}, truncation=truncation)
        )
    )


@pytest.mark.parametrize("side", ["front", "behind"])
def test_the_post_processor_adds_tokens_only_when_asked(tmp_path: Path, side: str) -> None:
    text, token = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [token, text] if side == "front" else [text, token]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    tokenizer = BloomTokenizer.from_preset(hugging_face(tmp_path, post_processor=template))
    same(tokenizer)
    plain = SMALL("the 意")
    added = [1, *plain] if side == "front" else [*plain, 1]
    assert tokenizer("the 意", add_special_tokens=True) == added
    assert tokenizer.tokenize(["the 意", ""], add_special_tokens=True) == [added, [1]]
    with pytest.raises(InvalidInput, match="add_special_tokens: expected True or False"):
        tokenizer("the", add_special_tokens=1)


def test_special_tokens_may_have_other_names(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}, "bos_token": None}))
    assert BloomTokenizer.from_preset(tmp_path).end_token_id == 3
    assert BloomTokenizer.from_preset(tmp_path).start_token_id == 1


def test_ids_without_a_token() -> None:
    tokenizer = BloomTokenizer({"a": 0, "b": 3}, [])
    assert tokenizer.vocabulary_size() == 4
    assert [tokenizer.has_token(i) for i in (-1, 0, 1, 2, 3, 4)] == [False, True, False, False, True, False]
    with pytest.raises(InvalidInput, match=r"ids: .*have a token.*got 2"):
        tokenizer.detokenize([0, 2])


def broken(folder: Path, text: str, name: str = "tokenizer.json") -> Path:
    hugging_face(folder)
    (folder / name).write_text(text, "utf-8")
    return folder


FILES: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "no files": (lambda folder: folder, InvalidInput, "preset: expected a folder with tokenizer.json"),
    "no JSON": (lambda folder: broken(folder, "{"), BadWeights, "tokenizer.json: expected a JSON object"),
    "other object": (
        lambda folder: broken(folder, '{"a": 1}'),
        BadWeights,
        "tokenizer.json: expected a tokenizer.json",
    ),
    "no BPE": (
        lambda folder: hugging_face(folder, model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        BadWeights,
        "expected a byte-level BPE.*got WordLevel",
    ),
    "no byte level": (
        lambda folder: hugging_face(folder, decoder=None),
        BadWeights,
        "byte-level BPE.*got BPE with decoder None",
    ),
    "broken side file": (
        lambda folder: broken(folder, "[]", "tokenizer_config.json"),
        BadWeights,
        "tokenizer_config.json",
    ),
    "Keras without merges": (
        lambda folder: [keras(folder), (folder / "assets/tokenizer/merges.txt").unlink()] and folder,
        BadWeights,
        "merges.txt",
    ),
    "Keras with a foreign merge": (lambda folder: keras(folder, "x y\n"), BadWeights, "merges: .*got x y"),
    "Keras with half a merge": (lambda folder: keras(folder, "xy\n"), BadWeights, "merges: .*got xy"),
}


@pytest.mark.parametrize("case", FILES)
def test_broken_files(case: str, tmp_path: Path) -> None:
    make, error, message = FILES[case]
    with pytest.raises(error, match=message):
        BloomTokenizer.from_preset(make(tmp_path))


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no text": (lambda: SMALL(3), "text: expected a string or a list of strings, got 3"),  # type: ignore[call-overload]
    "bytes": (lambda: SMALL(b"a"), "text: expected a string"),  # type: ignore[call-overload]
    "mixed": (lambda: SMALL(["a", 3]), "text: expected a string"),  # type: ignore[list-item]
    "lone surrogate": (lambda: SMALL("a\ud800"), r"text: expected valid Unicode, got '\\ud800'; at 1"),
    "ids of text": (lambda: SMALL.detokenize("abc"), "ids: expected a list of ids"),  # type: ignore[call-overload]
    "no ids": (lambda: SMALL.detokenize(3), "ids: expected a list of ids"),  # type: ignore[call-overload]
    "id too large": (lambda: SMALL.detokenize([TOKENS]), rf"ids: expected ids in \[0, {TOKENS}\).*got {TOKENS}"),
    "id negative": (lambda: SMALL.detokenize([-1]), "ids: .*got -1"),
    "id real": (lambda: SMALL.detokenize([1.0]), "ids: expected integers, got 1.0"),  # type: ignore[list-item]
    "id bool": (lambda: SMALL.id_to_token(True), "ids: expected integers, got True"),
    "unknown token": (lambda: SMALL.token_to_id("nowhere"), "token: expected one of .*got 'nowhere'"),
    "token no text": (lambda: SMALL.token_to_id(3), "token: .*got 3"),  # type: ignore[arg-type]
    "vocabulary list": (lambda: BloomTokenizer(["a"], []), "vocabulary: expected a dictionary"),  # type: ignore[arg-type]
    "vocabulary file": (lambda: BloomTokenizer("nowhere.json", []), "vocabulary: expected the path of a JSON file"),
    "vocabulary id": (lambda: BloomTokenizer({"a": -1}, []), "vocabulary: expected strings with ids"),
    "vocabulary real": (lambda: BloomTokenizer({"a": 1.5}, []), "vocabulary: expected strings with ids"),  # type: ignore[dict-item]
    "vocabulary twice": (lambda: BloomTokenizer({"a": 1, "b": 1}, []), "vocabulary: expected a different id"),
    "merges number": (lambda: BloomTokenizer({"a": 0}, 3), "merges: expected a list of pairs"),  # type: ignore[arg-type]
    "merges file": (lambda: BloomTokenizer({"a": 0}, "nowhere.txt"), "merges: expected the path of a text file"),
    "merges one": (lambda: BloomTokenizer({"a": 0}, ["a"]), "merges: expected pairs.*got a"),
    "merges three": (lambda: BloomTokenizer({"a": 0}, ["a a a"]), "merges: expected pairs"),
    "merges unknown": (lambda: BloomTokenizer({"a": 0}, ["a a"]), "merges: expected pairs whose halves.*got a a"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(InvalidInput, match=message):
        make()
