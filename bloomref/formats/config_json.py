"""The two spellings of a config on disk: config.json of Hugging Face, and the `config` object of KerasHub.

The package registers them, so that `BloomConfig.from_hf` and its like find them.
"""

from collections.abc import Mapping
from typing import Any

from bloomref.argument_kinds import check_mapping
from bloomref.config import MAX_SIZE, SIZES, SPELLINGS, BloomConfig, Spelling
from bloomref.errors import BadWeights, invalid, represented
from bloomref.validation import check_integer

# canonical field <- the keys under which Hugging Face checkpoints store it; the first one present wins
_HF_KEYS: dict[str, tuple[str, ...]] = {
    "vocabulary_size": ("vocab_size",),
    "hidden_dim": ("n_embed", "hidden_size"),
    "num_layers": ("n_layer", "num_hidden_layers"),
    "num_heads": ("n_head", "num_attention_heads"),
    "intermediate_dim": ("intermediate_size",),
    "attention_dropout": ("attention_dropout",),
    "hidden_dropout": ("hidden_dropout",),
    "layer_norm_epsilon": ("layer_norm_epsilon",),
    "apply_residual_connection_post_layernorm": ("apply_residual_connection_post_layernorm",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "initializer_range": ("initializer_range",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
}
_KNOWN_HF = {key for keys in _HF_KEYS.values() for key in keys} | {"architectures", "model_type"}
_REQUIRED = ("vocabulary_size", "hidden_dim", "num_layers", "num_heads")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def register() -> None:
    """Add both spellings to those of `bloomref.config`."""
    SPELLINGS.update(hf=Spelling(read_hf, write_hf), keras=Spelling(read_keras, write_keras))


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def read_hf(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a BloomConfig in a `config.json`, in the old or the new spelling of its keys.

    If both spellings are present, the one that transformers reads wins (`n_embed` over `hidden_size`).

    Raises:
        BadWeights: when it is not a BLOOM or lacks a size; InvalidInput: when the width is out of its domain.
    """
    check_mapping("data", data)
    if data.get("model_type") not in (None, "bloom"):
        raise BadWeights(f"config.json: expected model_type 'bloom', got {represented(data['model_type'])}")
    present = {name: next((key for key in keys if _states(data, key, name)), None) for name, keys in _HF_KEYS.items()}
    missing = [" or ".join(_HF_KEYS[name]) for name in _REQUIRED if present[name] is None]
    if missing:
        raise BadWeights(f"config.json: expected the keys {', '.join(missing)}, got {sorted(data)}")
    fields = {name: data[key] for name, key in present.items() if key is not None}
    check_integer("hidden_dim", fields["hidden_dim"], 1, MAX_SIZE)
    fields.setdefault("intermediate_dim", 4 * fields["hidden_dim"])
    return fields | {"extra": {key: value for key, value in data.items() if key not in _KNOWN_HF}}


def _states(data: Mapping[str, Any], key: str, name: str) -> bool:
    """True if a config.json states a field by this key. Null counts as absent (CFG-7), and is a value of token ids."""
    return key in data and (data[key] is not None or name in _TOKEN_IDS)


def write_hf(config: BloomConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads. An MLP width other than 4 D is stored as `intermediate_size`."""
    data: dict[str, Any] = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", **config.extra}
    data |= {keys[-1]: getattr(config, name) for name, keys in _HF_KEYS.items()}
    if isinstance(config.eos_token_id, tuple):
        data["eos_token_id"] = list(config.eos_token_id)
    data["n_layer"], data["n_head"] = data.pop("num_hidden_layers"), data.pop("num_attention_heads")
    if config.intermediate_dim == 4 * config.hidden_dim:
        del data["intermediate_size"]
    return data


# --- KerasHub --------------------------------------------------------------------------------------------------------


def read_keras(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a BloomConfig in the `config` object of a KerasHub BloomBackbone.

    Raises:
        BadWeights: when a size is missing.
    """
    check_mapping("data", data)
    data = {key: value for key, value in data.items() if value is not None}
    missing = [key for key in SIZES if key not in data]
    if missing:
        raise BadWeights(f"config.json: expected the keys {', '.join(missing)}, got {sorted(data)}")
    rate = data.get("dropout", 0.0)
    fields = {key: data[key] for key in (*SIZES, "layer_norm_epsilon") if key in data}
    return fields | {"attention_dropout": rate, "hidden_dropout": rate}


def write_keras(config: BloomConfig) -> dict[str, Any]:
    """The constructor arguments of KerasHub's BloomBackbone.

    Raises:
        InvalidInput: for an untied LM head, the post-layernorm residual, or two dropout rates: KerasHub has none.
            Clause: CFG-9.
    """
    expressible = {
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
        "attention_dropout": config.hidden_dropout,
    }
    for name, expected in expressible.items():
        if getattr(config, name) != expected:
            hint = "save with format='hf'"
            raise invalid(name, f"{expected}, the one value of the Keras layout", getattr(config, name), hint)
    return {key: getattr(config, key) for key in (*SIZES, "layer_norm_epsilon")} | {"dropout": config.hidden_dropout}
