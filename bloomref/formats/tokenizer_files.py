"""Files of a tokenizer: copied within a layout, converted between the two layouts."""

import shutil
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe
from bloomref.formats.files import read_json, regular_file, write_json

HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
KERAS_ASSETS = Path("assets", "tokenizer")
KERAS_FILES = (
    "tokenizer.json",
    "preprocessor.json",
    str(KERAS_ASSETS / "vocabulary.json"),
    str(KERAS_ASSETS / "merges.txt"),
)
# BLOOM's rule (Oniguruma): a run of characters other than spaces and the listed punctuation, with an optional space
SPLIT_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer_files(folder: Path) -> list[Path]:
    """Paths of the tokenizer's files in a folder, in either layout."""
    names = KERAS_FILES if has_keras_tokenizer(folder) else HF_FILES[:-1]
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


def _checked(vocabulary: dict[str, Any]) -> dict[str, int]:
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise BadWeights(describe(f"vocabulary: {token!r}", "an integer >= 0", number))
    return vocabulary


def bloom_tokenizer_json(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """Contents of a `tokenizer.json` that splits text by BLOOM's rule.

    Args:
        vocabulary: token -> id.
        merges: "left right" pairs, by decreasing priority.
    """
    special = [token for token in _SPECIAL.values() if token in vocabulary]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[t], "content": t, **flags, "special": True} for t in special],
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


def write_hf_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of the folder `source` into `target`, in the layout of transformers."""
    if not has_keras_tokenizer(source):
        _copy(source, target, HF_FILES)
        return
    vocabulary, merges = vocabulary_and_merges(source)
    write_json(target / "tokenizer.json", bloom_tokenizer_json(vocabulary, merges))
    special = {name: token for name, token in _SPECIAL.items() if token in vocabulary}
    write_json(target / "special_tokens_map.json", special)
    facts = {"tokenizer_class": "BloomTokenizerFast", "padding_side": "left", "add_prefix_space": False}
    write_json(target / "tokenizer_config.json", facts | special)


def write_keras_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of the folder `source` into `target`, in the layout of KerasHub's BloomTokenizer."""
    (target / KERAS_ASSETS).mkdir(parents=True)
    if has_keras_tokenizer(source):
        _copy(source, target, KERAS_FILES)
        return
    vocabulary, merges = vocabulary_and_merges(source)
    write_json(target / KERAS_ASSETS / "vocabulary.json", vocabulary)
    (target / KERAS_ASSETS / "merges.txt").write_text("".join(f"{merge}\n" for merge in merges), "utf-8")
    write_json(target / "tokenizer.json", _keras_tokenizer())


def _keras_tokenizer() -> dict[str, Any]:
    config = {
        "name": "bloom_tokenizer",
        "trainable": True,
        "dtype": keras_dtype("int32"),
        "config_file": "tokenizer.json",
        "sequence_length": None,
        "add_prefix_space": False,
        "unsplittable_tokens": [_SPECIAL[name] for name in ("eos_token", "bos_token", "pad_token")],
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


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(regular_file(source / name), target / name)
