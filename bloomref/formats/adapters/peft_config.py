"""adapter_config.json of PEFT: adapted modules, ranks and scales of a LoRA adapter. Clauses: LRA-12, LRA-18.

Module names are those of transformers' BloomForCausalLM, such as `transformer.h.0.self_attention.query_key_value`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bloomref.argument_kinds import check_kind, check_mapping, check_text, check_word
from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, InvalidInput, invalid, represented
from bloomref.formats.adapters import peft_fields
from bloomref.formats.adapters.module_patterns import Patterns
from bloomref.formats.adapters.peft_methods import check_supported
from bloomref.params import HF_PREFIX, LM_HEAD, WORD_EMBEDDING, Weight, full_key, keys
from bloomref.validation import check_bool, check_integer, check_real

LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
EMBEDDING = "word_embeddings"
HEAD = "lm_head"
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = ("query_key_value",)
_USED = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights")
_SAVED = ("bias", "modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "ensure_weight_tying")
_MATCHING = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
_LATER = (
    "target_parameters",
    "layers_pattern",
    "trainable_token_indices",
    "use_dora",
    "lora_bias",
    "ensure_weight_tying",
)
# keys without effect on the adapter's output: facts, and options of how an adapter is initialised, trained or stored
_INERT: tuple[str, ...] = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
)
_INERT += ("megatron_core", "qalora_group_size", "fan_in_fan_out", "merge_weights")
_INERT += ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The options of PEFT's LoraConfig that BLOOM needs. The defaults are PEFT's.

    Args:
        r: the rank R, at least 1.
        lora_alpha: the adapter's term is scaled by lora_alpha / r, or by lora_alpha / sqrt(r) with `use_rslora`.
        target_modules: modules to adapt. A list has module names or their last parts (`query_key_value`, `dense`,
            `dense_h_to_4h`, `dense_4h_to_h`, `word_embeddings`). A string is a regular expression that matches whole
            names, or "all-linear". None: `query_key_value`, or nothing with `target_parameters`.
        target_parameters: weights to adapt, by the last parts of their names: `dense.weight`.
        exclude_modules: modules that are not adapted, in the form of `target_modules`.
        layers_to_transform: indices of the layers to adapt, or one index; None: all layers. It applies only to a list
            of modules.
        layers_pattern: name of the list of layers, for `layers_to_transform`: `h`, or several as a list.
        lora_dropout: dropout rate of the adapter's input in training, in [0, 1). The embedding has no dropout.
        use_rslora: scale by the square root of the rank.
        rank_pattern: regular expression for the end of a module's name -> r of that module.
        alpha_pattern: regular expression for the end of a module's name -> lora_alpha of that module.
        init_lora_weights: how a new adapter starts: True (B is zero), or "gaussian" (A normal, B zero).
        bias: biases that are trained and saved: "none", "all", or "lora_only", those of adapted modules.
        modules_to_save: modules that are trained and saved whole, by the ends of their names: `lm_head`, `ln_f`.
            Such an embedding serves the lookup only; a tied LM head is separate.
        trainable_token_indices: rows of the embedding that are trained and saved; or a dictionary from
            `word_embeddings` and `lm_head` to rows. A tied LM head has the rows of the embedding.
        use_dora: adapt direction and magnitude of the rows of a matrix (DoRA, arXiv:2402.09353).
        lora_bias: B has a bias.
        ensure_weight_tying: for a new adapter, what is trained of a tied LM head is that of the embedding.
        facts: other keys of an adapter_config.json, without effect here, which are written again.

    Raises:
        InvalidInput: when a value is outside its domain.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | tuple[str, ...] = DEFAULT_TARGETS
    target_parameters: tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] = ()
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init_lora_weights: bool | str = True
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    use_dora: bool = False
    lora_bias: bool = False
    ensure_weight_tying: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("r", self.r, 1)
        check_real("lora_alpha", self.lora_alpha)
        check_real("lora_dropout", self.lora_dropout, "a probability in [0, 1)", lambda p: 0 <= p < 1)
        for name in ("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"):
            check_bool(name, getattr(self, name))
        check_word("bias", self.bias, ("none", "all", "lora_only"))
        check_kind("init_lora_weights", self.init_lora_weights, (bool, str), "True, False or a name")
        for name in ("target_parameters", "exclude_modules", "layers_pattern", "modules_to_save"):
            self._set(name, peft_fields.names(name, getattr(self, name), ()))
        absent = () if self.target_parameters else DEFAULT_TARGETS
        self._set("target_modules", peft_fields.names("target_modules", self.target_modules, absent))
        for name in ("target_parameters", "modules_to_save"):
            if isinstance(getattr(self, name), str):
                raise invalid(name, "a list of names", represented(getattr(self, name)))
        self._set("layers_to_transform", peft_fields.layers(self.layers_to_transform))
        self._set("trainable_token_indices", peft_fields.indices(self.trainable_token_indices))
        for name in ("rank_pattern", "alpha_pattern"):
            self._set(name, peft_fields.pattern(name, getattr(self, name)))
        for pattern, rank in self.rank_pattern.items():
            check_integer(f"rank_pattern: {pattern}", rank, 1)
        for pattern, alpha in self.alpha_pattern.items():
            check_real(f"alpha_pattern: {pattern}", alpha)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LoraConfig":
        """Create a config from the contents of an adapter_config.json.

        Raises:
            Unsupported: for a method other than LoRA, and for a variant of LoRA (LRA-18).
            BadWeights: for a value outside its domain.
        """
        check_mapping("data", data)
        used = (*_USED, *_MATCHING, *_SAVED)
        check_supported(data, (*used, *_INERT))
        fields = {"target_modules": None} | {name: data[name] for name in used if data.get(name) is not None}
        try:
            return cls(**fields, facts={name: data[name] for name in _INERT if name in data})
        except InvalidInput as error:
            raise BadWeights(f"adapter_config.json: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Contents of an adapter_config.json for PEFT. Keys that are left out have PEFT's defaults."""
        listed = {name: getattr(self, name) for name in (*_USED, *_MATCHING, *_SAVED)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()}
        plain |= {name: plain[name] or None for name in ("exclude_modules", "modules_to_save")}
        later = {name for name in _LATER if not plain[name]}  # unknown to early versions of PEFT, so only where needed
        facts = {"task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
        written = facts | dict(self.facts) | {"peft_type": "LORA"} | plain
        return {name: written[name] for name in sorted(written.keys() - later)}

    # --- modules ---------------------------------------------------------------------------------

    def targets(self, config: BloomConfig) -> dict[str, Weight]:
        """Adapted weights of a model: Hugging Face key (without `transformer.`) -> its row of the weight table.

        Raises:
            InvalidInput: when no module of the model matches, or an expression needs too many steps.
        """
        check_kind("config", config, BloomConfig, "a BloomConfig")
        patterns = Patterns("target_modules")
        table = dict((*keys(config), (LM_HEAD.hf_key, LM_HEAD)))
        targets = {
            key: weight
            for key, weight in table.items()
            if _is_adaptable(weight) and not self.saves(key) and self._adapts(module_name(key), patterns)
        }
        if not targets and self.target_modules:
            hint = f"known: {', '.join((*LINEARS, EMBEDDING, HEAD, ALL_LINEAR))}"
            raise invalid("target_modules", "modules of this model", str(self.target_modules), hint)
        return targets

    def saves(self, key: str) -> bool:
        """True if `modules_to_save` has the module of a weight, or a module around it."""
        check_text("key", key)
        parts = full_key(key).split(".")[:-1]
        names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(name.endswith(end) for name in names for end in self.modules_to_save)

    def unties(self) -> bool:
        """True if `modules_to_save` separates an LM head from the embedding that it is tied to."""
        saved = [self.saves(WORD_EMBEDDING.hf_key), self.saves(LM_HEAD.hf_key)]
        return any(saved) and not (all(saved) and self.ensure_weight_tying)

    def token_indices(self, key: str) -> tuple[int, ...]:
        """Rows of the embedding, or of the head, that `trainable_token_indices` names."""
        check_text("key", key)
        ids = self.trainable_token_indices or ()
        if not isinstance(ids, Mapping):
            return ids if key.startswith(EMBEDDING) else ()
        return next((rows for name, rows in ids.items() if module_name(key).endswith(name)), ())

    def adapts_parameter(self, key: str) -> bool:
        """True if `target_parameters` has the weight with this Hugging Face key."""
        check_text("key", key)
        return any(_ends(full_key(key), name) for name in self.target_parameters)

    def base_hint(self) -> str:
        """A sentence about the model that the adapter was trained on, if the config names it."""
        base = self.facts.get("base_model_name_or_path")
        return f"the adapter's base is {base}" if base else ""

    def rank(self, key: str) -> int:
        """Rank of a new adapter of the weight with this Hugging Face key."""
        check_text("key", key)
        return int(Patterns("rank_pattern").first(self.rank_pattern, module_name(key), self.r))

    def scale(self, key: str) -> float:
        """Scale of a new adapter of the weight with this Hugging Face key."""
        return self.scales({key: self.rank(key)})[key]

    def scales(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Scales of adapters of these ranks, by Hugging Face key.

        Raises:
            InvalidInput: when an expression of `alpha_pattern` needs too many steps.
        """
        check_mapping("ranks", ranks)
        patterns = Patterns("alpha_pattern")
        alphas = {key: float(patterns.first(self.alpha_pattern, module_name(key), self.lora_alpha)) for key in ranks}
        return {key: alphas[key] / (math.sqrt(rank) if self.use_rslora else rank) for key, rank in ranks.items()}

    def _adapts(self, module: str, patterns: Patterns) -> bool:
        if any(_ends(f"{module}.weight", name) for name in self.target_parameters):
            return True
        if _fits(self.exclude_modules, module, patterns) or not _fits(self.target_modules, module, patterns):
            return False
        if self.layers_to_transform in (None, ()) or isinstance(self.target_modules, str):
            return True
        layer = re.match(re.escape(HF_PREFIX) + r"h\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self._layers() and self._is_listed(layer[0], patterns)

    def _layers(self) -> tuple[int, ...]:
        layers = self.layers_to_transform
        return (layers,) if isinstance(layers, int) else layers or ()

    def _is_listed(self, start: str, patterns: Patterns) -> bool:
        """True if `layers_pattern` names the list of a layer, for the start of its modules' names."""
        names = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
        return not names or any(patterns.fullmatch(rf"(?:^|.*?\.){name}\.\d+\.", start) for name in names)


def module_name(key: str) -> str:
    """Name of the module whose weight has this Hugging Face key."""
    return full_key(key).removesuffix(".weight")


def _is_adaptable(weight: Weight) -> bool:
    return weight.hf_key.removesuffix(".weight").rpartition(".")[2] in (*LINEARS, EMBEDDING, HEAD)


def _fits(names: str | tuple[str, ...], module: str, patterns: Patterns) -> bool:
    if isinstance(names, str):
        if names.lower() == ALL_LINEAR:
            return module.rpartition(".")[2] in LINEARS
        return patterns.fullmatch(names, module)
    return any(_ends(module, name) for name in names)


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
