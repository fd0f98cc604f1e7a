"""Files of a tokenizer and of what stands beside it: copied within a layout, converted between the two layouts."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe
from bloomref.formats import generation_config
from bloomref.formats.files import read_json, regular_file, write_json
from bloomref.formats.tokenizers.tokenizer_facts import CONFIG, SPECIALS, TEMPLATE, TEMPLATES, TokenizerFacts

HF_FILES = (
    "tokenizer.json",
    CONFIG,
    SPECIALS,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
)
KERAS_ASSETS = Path("assets", "tokenizer")
KERAS_FILES = (
    "tokenizer.json",
    "preprocessor.json",
    str(KERAS_ASSETS / "vocabulary.json"),
    str(KERAS_ASSETS / "merges.txt"),
)
PAPERS = re.compile(r"(readme|licen[sc]e|copying|notice|use[-_]policy)([-_. ].*)?", re.IGNORECASE)
"""Names of the files that say what a model is and what may be done with it: copies of the model keep them."""
# BLOOM's rule (Oniguruma): a run of characters other than spaces and the listed punctuation, with an optional space
SPLIT_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer_files(folder: Path) -> list[Path]:
    """Paths of the tokenizer's files in a folder, in either layout."""
    names = KERAS_FILES if has_keras_tokenizer(folder) else HF_FILES
    return [folder / name for name in names if (folder / name).exists()]


def has_keras_tokenizer(folder: Path) -> bool:
    """True if the folder has a tokenizer in the Keras layout."""
    return (folder / KERAS_ASSETS / "vocabulary.json").exists()


def vocabulary_and_merges(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Read the vocabulary (token -> id) and the merges (by decreasing priority) of a folder, in either layout.

    Raises:
        BadWeights: when the folder has no tokenizer, or a damaged one.
    """
    try:
        return _from_keras(folder / KERAS_ASSETS) if has_keras_tokenizer(folder) else _from_hf(folder)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise BadWeights(f"{folder}: expected the files of a BPE tokenizer, got damaged ones ({error!r})") from error


def _from_keras(folder: Path) -> tuple[dict[str, int], list[str]]:
    lines = regular_file(folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version:")]
    return _checked(read_json(folder / "vocabulary.json")), merges


def _from_hf(folder: Path) -> tuple[dict[str, int], list[str]]:
    data = read_json(folder / "tokenizer.json")
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") not in (None, "BPE") or model.get("merges") is None:
        raise BadWeights(describe("tokenizer.json: model", "a BPE with vocab and merges", type(model).__name__))
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return _checked({**(model.get("vocab") or {}), **added}), merges


def check_merges(data: dict[str, Any], file: Path) -> None:
    """Refuse the contents of a tokenizer.json whose merges name tokens that its vocabulary does not have.

    Raises:
        BadWeights: with the first such merge, the token and the number of such merges.
    """
    model = data.get("model")
    vocabulary, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        return
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(half, str) for half in p) for p in pairs):
        return
    lost = [(pair, token) for pair in pairs for token in (*pair, "".join(pair)) if token not in vocabulary]
    if lost:
        (left, right), token = lost[0]
        raise BadWeights(
            f"{file}: merges: expected pairs whose halves and union are in the vocabulary, got {left!r} + {right!r} "
            f"without {token!r}, like {len({tuple(pair) for pair, _ in lost})} of {len(pairs)} merges; whoever removed "
            "the tokens must remove these merges, too"
        )


def _checked(vocabulary: dict[str, Any]) -> dict[str, int]:
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise BadWeights(describe(f"vocabulary: {token!r}", "an integer >= 0", number))
    return vocabulary


def bloom_tokenizer_json(
    vocabulary: dict[str, int], merges: list[str], added: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Contents of a `tokenizer.json` that splits text by BLOOM's rule.

    Args:
        vocabulary: token -> id.
        merges: "left right" pairs, by decreasing priority.
        added: the tokens that are matched before the text is split; None: BLOOM's special tokens, if it has them.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(_SPECIAL.values(), vocabulary) if added is None else added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _added(tokens: Iterable[str], vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
    """Special tokens as a tokenizer.json lists them, those of the vocabulary."""
    flags = {**dict.fromkeys(_FLAGS, False), "special": True}
    return [{"id": vocabulary[token], "content": token, **flags} for token in tokens if token in vocabulary]


def keras_added_tokens(folder: Path, vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer in the Keras layout, as a tokenizer.json lists them.

    They stand in the tokenizer_config.json that bloomref writes beside it, else among KerasHub's `unsplittable_tokens`.

    Raises:
        BadWeights: when a file is damaged.
    """
    try:
        stored = TokenizerFacts.read(folder).config.get("added_tokens_decoder")
        if stored is not None:
            flags = (*_FLAGS, "special")
            tokens = [{"content": t["content"], **{name: bool(t.get(name)) for name in flags}} for t in stored.values()]
            return [{"id": vocabulary[t["content"]], **t} for t in tokens if t["content"] in vocabulary]
        described = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
        unsplittable = described.get("config", {}).get("unsplittable_tokens") or ()
        return _added(dict.fromkeys([*_SPECIAL.values(), *unsplittable]), vocabulary)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{folder}: expected the added tokens of a tokenizer, got damaged ones ({error!r})") from error


def write_hf_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of the folder `source`, and what stands beside it, into `target`, as transformers has it."""
    copy_beside(source, target)
    if not has_keras_tokenizer(source):
        _copy(source, target, HF_FILES)
        return
    vocabulary, merges = vocabulary_and_merges(source)
    added = keras_added_tokens(source, vocabulary)
    write_json(target / "tokenizer.json", bloom_tokenizer_json(vocabulary, merges, added))
    special = {name: token for name, token in _SPECIAL.items() if token in vocabulary}
    TokenizerFacts.read(source).write(target, special)


def write_keras_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of the folder `source`, and what stands beside it, into `target`, as KerasHub has it.

    KerasHub reads only its own files; the others are kept for the way back.
    """
    copy_beside(source, target)
    _copy(source, target, (CONFIG, SPECIALS))
    if has_keras_tokenizer(source):
        (target / KERAS_ASSETS).mkdir(parents=True)
        _copy(source, target, KERAS_FILES)
    elif (source / "tokenizer.json").exists():
        (target / KERAS_ASSETS).mkdir(parents=True)
        _to_keras(source, target)


def _to_keras(source: Path, target: Path) -> None:
    vocabulary, merges = vocabulary_and_merges(source)
    write_json(target / KERAS_ASSETS / "vocabulary.json", vocabulary)
    (target / KERAS_ASSETS / "merges.txt").write_text("".join(f"{merge}\n" for merge in merges), "utf-8")
    added = {str(token["id"]): token for token in read_json(source / "tokenizer.json").get("added_tokens", [])}
    write_json(target / "tokenizer.json", _keras_tokenizer([token["content"] for token in added.values()]))
    decoder = {key: {name: token[name] for name in token if name != "id"} for key, token in added.items()}
    facts = TokenizerFacts.read(source)
    replace(facts, config={**facts.config, "added_tokens_decoder": decoder}).write(target, {})


def papers(folder: Path) -> list[str]:
    """Names of the folder's model card and licences."""
    return [path.name for path in sorted(folder.iterdir()) if PAPERS.fullmatch(path.name) and path.is_file()]


def copy_beside(source: Path, target: Path) -> None:
    """Copy generation settings, chat templates, model card and licences of a folder, if it has them."""
    templates = [f"{TEMPLATES}/{path.name}" for path in sorted((source / TEMPLATES).glob("*.jinja"))]
    if templates:
        (target / TEMPLATES).mkdir()
    _copy(source, target, (generation_config.FILE, TEMPLATE, *templates, *papers(source)))


def _keras_tokenizer(added: list[str]) -> dict[str, Any]:
    own = [_SPECIAL[name] for name in ("eos_token", "bos_token", "pad_token")]
    config = {
        "name": "bloom_tokenizer",
        "trainable": True,
        "dtype": keras_dtype("int32"),
        "config_file": "tokenizer.json",
        "sequence_length": None,
        "add_prefix_space": False,
        "unsplittable_tokens": [*own, *(token for token in added if token not in own and token != "<unk>")],
    }
    return {
        "module": "keras_hub.src.models.bloom.bloom_tokenizer",
        "class_name": "BloomTokenizer",
        "config": config,
        "registered_name": "keras_hub>BloomTokenizer",
    }


def keras_dtype(name: str) -> dict[str, Any]:
    """Serialized Keras dtype policy with this name."""
    return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}, "registered_name": None}


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(regular_file(source / name), target / name)
