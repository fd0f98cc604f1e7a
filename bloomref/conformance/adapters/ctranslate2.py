"""CTranslate2, converted from a folder in Hugging Face layout.

It has no padding: the adapter passes the real tokens of each row, in one batch of rows of different lengths.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import need, params_of, refuse, versions_of
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.formats.layouts import hf
from bloomref.shapes import Array, Bool, Float, Int

INSTALL = '"ctranslate2>=4.5" "torch>=2.6" "transformers>=5.0"'
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class CTranslate2:
    """CTranslate2 in float32. Its converter silently drops two fields of the config (waivers/ctranslate2.toml)."""

    name = "ctranslate2"
    capabilities = Capabilities(
        dtypes=("float32",),
        masks=("real", "left", "right", "padding row"),
        features=frozenset(FEATURES) - {"mlp-width", "no-layers"},
    )

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "CTranslate2Model":
        """Write a model folder, convert it, and load the result; the files are temporary.

        Raises:
            Unsupported: CTranslate2, torch or transformers is not installed, or the model has an unsupported form.
        """
        need(self.name, "ctranslate2", "torch", "transformers", command=INSTALL)
        refuse(
            self.name,
            dtypes_other_than_float32=dtype != "float32",
            an_MLP_width_other_than_4_D=config.intermediate_dim != 4 * config.hidden_dim,
            a_model_without_layers=config.num_layers == 0,
        )
        import ctranslate2

        with TemporaryDirectory() as folder:
            source, target = Path(folder) / "source", Path(folder) / "converted"
            hf.save(source, config, params_of(config, weights))
            write_tokenizer(source, config.vocabulary_size)
            ctranslate2.converters.TransformersConverter(str(source)).convert(str(target), quantization=dtype)
            generator = ctranslate2.Generator(str(target), device="cpu", compute_type=dtype, intra_threads=1)
        return CTranslate2Model(generator, config.vocabulary_size)

    def versions(self) -> Mapping[str, str]:
        return versions_of("ctranslate2", "transformers", "torch")


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of placeholder tokens, which the converter needs."""
    names = [*SPECIAL.values(), *(f"t{i}" for i in range(len(SPECIAL), size))][:size]
    vocabulary = {name: i for i, name in enumerate(names)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": names[0]}
    empty: dict[str, Any] = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "padding"))
    tokenizer = {"version": "1.0", "truncation": None, "added_tokens": [], **empty, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: n for k, n in SPECIAL.items() if n in vocabulary}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


class CTranslate2Model:
    """A loaded generator."""

    def __init__(self, generator: Any, vocabulary_size: int) -> None:
        self.generator = generator
        self.size = vocabulary_size

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits by `forward_batch`, for the rows that have a token; zeros at padding."""
        out = np.zeros((*token_ids.shape, self.size), np.float32)
        rows = np.flatnonzero(is_real.any(axis=1))
        if len(rows):
            texts = [token_ids[row, is_real[row]].tolist() for row in rows]
            for row, text, result in zip(rows, texts, np.array(self.generator.forward_batch(texts)), strict=True):
                out[row, is_real[row]] = result[: len(text)]
        return out
