"""Tokenizer of ``bloom_tiny_udhr``: a byte-level BPE with the layout of BLOOM's files. It needs ``tokenizers``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Special tokens in the order of their ids, as in BLOOM.
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
EOS_ID, PAD_ID = 2, 3

#: Pattern by which BLOOM's tokenizer splits text.
SPLIT_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def train_tokenizer(texts: Sequence[str], size: int) -> Any:
    """Train a byte-level BPE of `size` entries, with the layout of BLOOM's ``tokenizer.json``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {size}")
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the three tokenizer files."""
    layout = json.loads(tokenizer.to_str())
    # In BLOOM's file a merge is one string, because no token has a space.
    layout["model"]["merges"] = [" ".join(pair) for pair in layout["model"]["merges"]]
    layout["decoder"]["use_regex"] = False  # as in BLOOM's file; it has no effect on decoding
    write_json(folder / "tokenizer.json", layout)
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "tokenizer_class": "BloomTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", dict(sorted({**config, **SPECIAL_TOKENS}.items())))
    write_json(folder / "special_tokens_map.json", dict(sorted(SPECIAL_TOKENS.items())))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, without special tokens."""
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]


def write_json(path: Path, value: Any) -> None:
    """Write JSON as Hugging Face does: indented, in UTF-8, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
