"""BloomConfig: the numbers that define a BLOOM, validated once."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from bloomref.errors import invalid
from bloomref.validation import check_bool, check_integer, check_real

SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
MAX_SIZE = 2**31 - 1
"""Largest vocabulary and width: products of two sizes and a number of bytes fit into 64 bits."""
MAX_LAYERS = 2**16 - 1
IGNORED_LABEL = -100  # a label that does not count in the loss, as in torch


class Spelling(NamedTuple):
    """A form of a config in JSON: `read` returns the fields, `write` the JSON object."""

    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[["BloomConfig"], dict[str, Any]]


SPELLINGS: dict[str, Spelling] = {}
"""Layout -> spelling. `bloomref.formats.config_json` registers them, so that no model has to know files."""


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

        Raises:
            BadWeights: when it is not a BLOOM or lacks a size; InvalidInput: when a value is out of its domain.
        """
        return cls(**SPELLINGS["hf"].read(data))

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that transformers reads."""
        return SPELLINGS["hf"].write(self)

    @classmethod
    def from_keras(cls, data: Mapping[str, Any]) -> "BloomConfig":
        """Read the `config` object of a KerasHub BloomBackbone. The errors are those of `from_hf`."""
        return cls(**SPELLINGS["keras"].read(data))

    def to_keras(self) -> dict[str, Any]:
        """The constructor arguments of KerasHub's BloomBackbone; InvalidInput for what it does not have (CFG-9)."""
        return SPELLINGS["keras"].write(self)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON-compatible values."""
        return asdict(self)
