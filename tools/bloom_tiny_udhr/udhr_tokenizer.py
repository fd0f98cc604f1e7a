"""The tokenizer of ``bloom_tiny_udhr``: a byte-level BPE with the layout of BLOOM's own files. Needs ``tokenizers``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Special tokens in the order of their ids, as in BLOOM.
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
EOS_ID, PAD_ID = 2, 3

#: The split of BLOOM's own tokenizer.
SPLIT_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def train_tokenizer(texts: Sequence[str], size: int) -> Any:
    """Trains a byte-level BPE with the layout of BLOOM's own ``tokenizer.json``."""
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
    """Writes the three tokenizer files."""
    layout = json.loads(tokenizer.to_str())
    # BLOOM's file writes a merge as one string; its tokens hold no space.
    layout["model"]["merges"] = [" ".join(pair) for pair in layout["model"]["merges"]]
    layout["decoder"]["use_regex"] = False  # as in BLOOM's file; decoding does not read it
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
    """The token ids of `text`, no special tokens added."""
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as Hugging Face does: indented, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
