"""Adapters of PEFT with more than factors: one of each kind, as if trained."""

from pathlib import Path
from typing import Any

import numpy as np
from strategies import Float32Case

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors

CONFIG = BloomConfig(vocabulary_size=23, num_layers=1, num_heads=3, hidden_dim=12, intermediate_dim=20)
KINDS: dict[str, dict[str, Any]] = {
    "all biases": {"bias": "all"},
    "biases of adapted modules": {"bias": "lora_only", "target_modules": ["dense"]},
    "saved modules": {"modules_to_save": ["word_embeddings", "ln_f", "self_attention.dense"]},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "a saved embedding and head, tied": {
        "modules_to_save": ["lm_head", "word_embeddings"],
        "ensure_weight_tying": True,
    },
    "rows": {"trainable_token_indices": [1, 5]},
    "rows of the head": {"trainable_token_indices": {"lm_head": [1, 5], "word_embeddings": [3]}},
    "dora": {"use_dora": True, "target_modules": ["query_key_value", "dense_4h_to_h", "word_embeddings"], "r": 3},
    "a bias of B": {"lora_bias": True, "target_modules": "all-linear"},
    "an adapted head": {"target_modules": ["lm_head", "dense"], "use_dora": True},
    "parameters": {"target_parameters": ["word_embeddings.weight", "dense.weight"]},
}


def lm(config: BloomConfig = CONFIG, dtype: str = "float64") -> BloomCausalLM:
    return BloomCausalLM(BloomBackbone.from_params(config, Float32Case(config).params, dtype))


def trained(folder: Path, settings: dict[str, Any], config: BloomConfig = CONFIG) -> Path:
    """An adapter of these settings, whose tensors differ from those it began with."""
    model = lm(config, "float32")
    model.add_adapter(settings)
    model.save_adapter(folder)
    rng = np.random.default_rng(1)
    rewrite(folder, lambda x: (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32))
    return folder


def rewrite(folder: Path, change: Any) -> None:
    file = SafetensorsFile(folder / "adapter_model.safetensors")
    arrays = {name: change(file.view(name)) for name in file.entries}
    if "ensure_weight_tying" in (folder / "adapter_config.json").read_text("utf-8"):
        arrays["base_model.model.lm_head.weight"] = arrays["base_model.model.transformer.word_embeddings.weight"]
    write_safetensors(folder / "adapter_model.safetensors", arrays)
