"""BloomConfig: the numbers that define a BLOOM, validated once, and their two spellings on disk."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bloomref.errors import BadWeights, invalid
from bloomref.validation import check_bool, check_integer, check_real

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
_REQUIRED = ("vocabulary_size", "hidden_dim", "num_layers", "num_heads")
SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_SIZE = 2**31 - 1
"""Largest vocabulary and width: products of two sizes and a number of bytes fit into 64 bits."""
MAX_LAYERS = 2**16 - 1
IGNORED_LABEL = -100  # a label that does not count in the loss, as in torch


@dataclass(frozen=True, kw_only=True)
class BloomConfig:
    """The numbers that define one BLOOM. Clauses: CFG-1 ... CFG-12.

    Raises:
        InvalidInput: when a field is outside its domain.
    """

    vocabulary_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    """One end token, or several (a list in config.json). Generation ends at any of them."""
    pad_token_id: int | None = 3
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other keys of a Hugging Face config.json (`pretraining_tp` ...): without effect, stored for a round trip."""

    def __post_init__(self) -> None:
        for name in SIZES:
            limits = (0, MAX_LAYERS) if name == "num_layers" else (1, MAX_SIZE)
            check_integer(name, getattr(self, name), *limits)
        if self.hidden_dim % self.num_heads:
            raise invalid("hidden_dim", f"a multiple of num_heads={self.num_heads}", self.hidden_dim)
        for name in ("attention_dropout", "hidden_dropout"):
            check_real(name, getattr(self, name), "a probability in [0, 1)", lambda p: 0 <= p < 1)
        check_real("layer_norm_epsilon", self.layer_norm_epsilon, "a number in [0, 1)", lambda x: 0 <= x < 1)
        check_real("initializer_range", self.initializer_range, "a finite number >= 0", lambda x: x >= 0)
        for name in ("apply_residual_connection_post_layernorm", "tie_word_embeddings"):
            check_bool(name, getattr(self, name))
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=0)
        ends: object = self.eos_token_id
        if isinstance(ends, list):
            object.__setattr__(self, "eos_token_id", tuple(ends))
        for end in self.end_token_ids:
            check_integer("eos_token_id", end, minimum=0)

    @property
    def head_dim(self) -> int:
        """K, the width of one head."""
        return self.hidden_dim // self.num_heads

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple: empty for None."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def sizes(self) -> dict[str, int]:
        """The letters of the dimension key that a config fixes."""
        return {
            "V": self.vocabulary_size,
            "D": self.hidden_dim,
            "F": self.intermediate_dim,
            "H": self.num_heads,
            "K": self.head_dim,
            "C": 3,
        }

    def replace(self, **changes: Any) -> "BloomConfig":
        return replace(self, **changes)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> "BloomConfig":
        """Read a Hugging Face `config.json`, in the old or the new spelling of its keys.

        If both spellings are present, the one that transformers reads wins (`n_embed` over `hidden_size`).

        Raises:
            BadWeights: when it is not a BLOOM or lacks a size; InvalidInput: when a value is out of its domain.
        """
        if data.get("model_type") not in (None, "bloom"):
            raise BadWeights(f"config.json: expected model_type 'bloom', got {data['model_type']!r}")
        present = {
            name: next((key for key in keys if _states(data, key, name)), None) for name, keys in _HF_KEYS.items()
        }
        missing = [" or ".join(_HF_KEYS[name]) for name in _REQUIRED if present[name] is None]
        if missing:
            raise BadWeights(f"config.json: expected the keys {', '.join(missing)}, got {sorted(data)}")
        fields = {name: data[key] for name, key in present.items() if key is not None}
        check_integer("hidden_dim", fields["hidden_dim"], 1, MAX_SIZE)
        fields.setdefault("intermediate_dim", 4 * fields["hidden_dim"])
        extra = {key: value for key, value in data.items() if key not in _KNOWN_HF}
        return cls(**fields, extra=extra)

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that transformers reads. An MLP width other than 4 D is stored as `intermediate_size`."""
        data: dict[str, Any] = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", **self.extra}
        data |= {keys[-1]: getattr(self, name) for name, keys in _HF_KEYS.items()}
        if isinstance(self.eos_token_id, tuple):
            data["eos_token_id"] = list(self.eos_token_id)
        data["n_layer"], data["n_head"] = data.pop("num_hidden_layers"), data.pop("num_attention_heads")
        if self.intermediate_dim == 4 * self.hidden_dim:
            del data["intermediate_size"]
        return data

    @classmethod
    def from_keras(cls, data: Mapping[str, Any]) -> "BloomConfig":
        """Read the `config` object of a KerasHub BloomBackbone.

        Raises:
            BadWeights: when a size is missing; InvalidInput: when a value is out of its domain.
        """
        data = {key: value for key, value in data.items() if value is not None}
        missing = [key for key in SIZES if key not in data]
        if missing:
            raise BadWeights(f"config.json: expected the keys {', '.join(missing)}, got {sorted(data)}")
        rate = data.get("dropout", 0.0)
        fields = {key: data[key] for key in (*SIZES, "layer_norm_epsilon") if key in data}
        return cls(**fields, attention_dropout=rate, hidden_dropout=rate)

    def to_keras(self) -> dict[str, Any]:
        """The constructor arguments of KerasHub's BloomBackbone.

        Raises:
            InvalidInput: for an untied LM head, the post-layernorm residual, or two dropout rates: KerasHub has none.
                Clause: CFG-9.
        """
        expressible = {
            "apply_residual_connection_post_layernorm": False,
            "tie_word_embeddings": True,
            "attention_dropout": self.hidden_dropout,
        }
        for name, expected in expressible.items():
            if getattr(self, name) != expected:
                hint = "save with format='hf'"
                raise invalid(name, f"{expected}, the one value of the Keras layout", getattr(self, name), hint)
        return {key: getattr(self, key) for key in (*SIZES, "layer_norm_epsilon")} | {"dropout": self.hidden_dropout}

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON-compatible values."""
        return asdict(self)


def _states(data: Mapping[str, Any], key: str, name: str) -> bool:
    """True if a config.json states a field by this key. Null counts as absent (CFG-7), and is a value of token ids."""
    return key in data and (data[key] is not None or name in _TOKEN_IDS)


_KNOWN_HF = {key for keys in _HF_KEYS.values() for key in keys} | {"architectures", "model_type"}
