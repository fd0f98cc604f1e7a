"""adapter_config.json of PEFT: adapted modules, ranks and scales of a LoRA adapter. Clauses: LRA-12, LRA-18.

Module names are those of transformers' BloomForCausalLM, such as `transformer.h.0.self_attention.query_key_value`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe, invalid
from bloomref.params import HF_PREFIX, Weight, keys
from bloomref.validation import check_bool, check_integer, check_real

LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
EMBEDDING = "word_embeddings"
ALL_LINEAR = "all-linear"
_USED = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
_MATCHING = ("target_modules", "exclude_modules", "layers_to_transform")
# keys without effect on the adapter's output, or parameters of an option that is refused
_INERT: tuple[str, ...] = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
_INERT += ("megatron_core", "qalora_group_size", "peft_type", "init_lora_weights")
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")
_UNSAFE = re.compile(
    r"""
    \(\?                 # groups with options, look-around, conditions
    | \\[1-9]            # back-references
    | [)}\]*+?] [*+{]    # a repeated group, set or repetition: backtracking may take exponential time
    | \{                 # counted repetition
    | .{201}             # an expression that is longer than 200 characters
    """,
    re.VERBOSE,
)
_QUANTIFIER = re.compile(r"(?<!\\)[*+?]")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The options of PEFT's LoraConfig that BLOOM needs. The defaults are PEFT's.

    Args:
        r: the rank R, at least 1.
        lora_alpha: the adapter's term is scaled by lora_alpha / r, or by lora_alpha / sqrt(r) with `use_rslora`.
        target_modules: modules to adapt. A list has module names or their last parts (`query_key_value`, `dense`,
            `dense_h_to_4h`, `dense_4h_to_h`, `word_embeddings`). A string is a regular expression that matches whole
            names, or "all-linear".
        exclude_modules: modules that are not adapted, in the same form.
        layers_to_transform: indices of the layers to adapt; None: all layers. It applies only to a list of modules.
        lora_dropout: dropout rate of the adapter's input in training, in [0, 1). The embedding has no dropout.
        use_rslora: scale by the square root of the rank.
        rank_pattern: regular expression for the end of a module's name -> r of that module.
        alpha_pattern: regular expression for the end of a module's name -> lora_alpha of that module.

    Raises:
        InvalidInput: when a value is outside its domain.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | tuple[str, ...] = ("query_key_value",)
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("r", self.r, 1)
        check_real("lora_alpha", self.lora_alpha)
        check_real("lora_dropout", self.lora_dropout, "a probability in [0, 1)", lambda p: 0 <= p < 1)
        check_bool("use_rslora", self.use_rslora)
        for name in ("target_modules", "exclude_modules"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if self.layers_to_transform is not None:
            object.__setattr__(self, "layers_to_transform", _layers(self.layers_to_transform))
        for pattern, rank in _pattern("rank_pattern", self.rank_pattern).items():
            check_integer(f"rank_pattern: {pattern}", rank, 1)
        for pattern, alpha in _pattern("alpha_pattern", self.alpha_pattern).items():
            check_real(f"alpha_pattern: {pattern}", alpha)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LoraConfig":
        """Create a config from the contents of an adapter_config.json.

        Raises:
            Unsupported: for a method other than LoRA, and for a variant of LoRA (LRA-18).
            BadWeights: for a value outside its domain.
        """
        _check_supported(data)
        fields = {name: data[name] for name in (*_USED, *_MATCHING) if data.get(name) is not None}
        if isinstance(fields.get("layers_to_transform"), int):
            fields["layers_to_transform"] = [fields["layers_to_transform"]]
        try:
            return cls(**fields)
        except InvalidInput as error:
            raise BadWeights(f"adapter_config.json: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Contents of an adapter_config.json for PEFT. Keys that are left out have PEFT's defaults."""
        listed = {name: getattr(self, name) for name in (*_USED, *_MATCHING)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()}
        fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
        open_ends = {"base_model_name_or_path": None, "exclude_modules": plain["exclude_modules"] or None}
        return dict(sorted((plain | fixed | open_ends | {"init_lora_weights": True, "modules_to_save": None}).items()))

    # --- modules ---------------------------------------------------------------------------------

    def targets(self, config: BloomConfig) -> dict[str, Weight]:
        """Adapted weights of a model: Hugging Face key (without `transformer.`) -> its row of the weight table.

        Raises:
            InvalidInput: when no module of the model matches; Unsupported: when `target_modules` names the LM head.
        """
        for name in self.target_modules if isinstance(self.target_modules, tuple) else ():
            if name.rpartition(".")[2] == "lm_head":
                hint = "adapt the layers below it instead"
                raise Unsupported(describe("target_modules", "modules other than the LM head", name, hint))
        targets = {
            key: weight for key, weight in keys(config) if _is_adaptable(weight) and self._adapts(module_name(key))
        }
        if not targets:
            hint = f"known: {', '.join((*LINEARS, EMBEDDING, ALL_LINEAR))}"
            raise invalid("target_modules", "modules of this model", str(self.target_modules), hint)
        return targets

    def rank(self, key: str) -> int:
        """Rank of the adapter of the weight with this Hugging Face key."""
        return int(_matching(self.rank_pattern, module_name(key), self.r))

    def scale(self, key: str) -> float:
        """Scale of the adapter of the weight with this Hugging Face key."""
        alpha, rank = float(_matching(self.alpha_pattern, module_name(key), self.lora_alpha)), self.rank(key)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _adapts(self, module: str) -> bool:
        if _fits(self.exclude_modules, module) or not _fits(self.target_modules, module):
            return False
        if not self.layers_to_transform or isinstance(self.target_modules, str):
            return True
        layer = re.match(re.escape(HF_PREFIX) + r"h\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self.layers_to_transform


def module_name(key: str) -> str:
    """Name of the module whose weight has this Hugging Face key."""
    return HF_PREFIX + key.removesuffix(".weight")


def _is_adaptable(weight: Weight) -> bool:
    return weight.hf_key.removesuffix(".weight").rpartition(".")[2] in (*LINEARS, EMBEDDING)


def _fits(patterns: str | tuple[str, ...], module: str) -> bool:
    if patterns == ALL_LINEAR:
        return module.rpartition(".")[2] in LINEARS
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the last parts of a module's name, or the default."""
    return next((value for p, value in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)


# --- checks ----------------------------------------------------------------------------------------------------


def _check_supported(data: Mapping[str, Any]) -> None:
    if data.get("peft_type") != "LORA":
        raise Unsupported(describe("adapter_config.json: peft_type", "'LORA'", repr(data.get("peft_type"))))
    if data.get("bias", "none") != "none":
        raise Unsupported(describe("adapter_config.json: bias", "'none': biases stay frozen", repr(data["bias"])))
    if data.get("init_lora_weights", True) not in _PLAIN_INITS:
        hint = "such an adapter also changes the base weights; convert it with PEFT's path_initial_model_for_weight_conversion"
        got = repr(data["init_lora_weights"])
        raise Unsupported(describe("adapter_config.json: init_lora_weights", "a plain initialisation", got, hint))
    known = (*_USED, *_MATCHING, *_INERT, "bias")
    for name, value in data.items():
        if name not in known and value not in (None, False, {}, [], ""):
            hint = "bloomref runs plain LoRA: low-rank products added to linear layers and to the embedding lookup"
            raise Unsupported(describe(f"adapter_config.json: {name}", "an adapter without it", repr(value), hint))


def _names(name: str, value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        _check_expression(name, value)
        return value
    if not isinstance(value, list | tuple | set) or not all(isinstance(item, str) for item in value):
        raise invalid(name, "names of modules, or one regular expression", repr(value))
    return tuple(sorted(value) if isinstance(value, set) else value)


def _layers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(item) is int and item >= 0 for item in value):
        raise invalid("layers_to_transform", "numbers of layers", repr(value))
    return tuple(value)


def _pattern(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value):
        raise invalid(name, "a dictionary from names of modules", repr(value))
    for expression in value:
        _check_expression(name, expression)
    return value


def _check_expression(name: str, expression: str) -> None:
    """Refuse regular expressions whose matching can take exponential time. They may come from an untrusted file.

    Raises:
        InvalidInput: when the expression is invalid, or not simple enough.
    """
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise invalid(name, "a regular expression", repr(expression), str(error)) from error
    if _UNSAFE.search(expression) or len(_QUANTIFIER.findall(expression)) > 3:
        hint = "write it without repeated groups, and with three of * + ? at most; or list the modules"
        raise invalid(name, "a simple regular expression", repr(expression), hint)
