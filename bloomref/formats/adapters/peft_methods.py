"""Adapters of PEFT that are not run: other methods than LoRA, and variants of LoRA. Clause: LRA-18."""

from collections.abc import Collection, Mapping
from typing import Any

from bloomref.errors import Unsupported, describe

_MERGE = (
    "merge it with PEFT: AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload().save_pretrained('merged'), "
    "then pass the folder merged as the model"
)
_RETRAIN = "PEFT alone runs it, since it has no weights to merge; train a LoRA adapter instead: bloomref finetune"
_CONVERT = (
    "this initialisation also changes the base weights; save the adapter again with PEFT: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge it there"
)
_PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
_UNMERGEABLE = ("alora_invocation_tokens", "arrow_config")
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")


def check_supported(data: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse what bloomref would run differently from PEFT.

    Args:
        data: contents of an adapter_config.json.
        known: keys that may have any value.

    Raises:
        Unsupported: naming the key, with a way to run the adapter.
    """
    method = data.get("peft_type")
    if method != "LORA":
        hint = _RETRAIN if method in _PROMPTS else _MERGE
        raise Unsupported(describe("adapter_config.json: peft_type", "'LORA'", repr(method), hint))
    if data.get("enable_lora"):
        hint = f"this is MergedLinear of PEFT 0.2, with separate factors for parts of a matrix; {_MERGE} (PEFT 0.2)"
        got = repr(data["enable_lora"])
        raise Unsupported(describe("adapter_config.json: enable_lora", "an adapter without it", got, hint))
    init = data.get("init_lora_weights")
    if init is not None and init not in _PLAIN_INITS:
        raise Unsupported(
            describe("adapter_config.json: init_lora_weights", "a plain initialisation", repr(init), _CONVERT)
        )
    for name, value in data.items():
        if name not in (*known, "peft_type") and value not in (None, False, {}, [], ""):
            hint = _RETRAIN if name in _UNMERGEABLE else _MERGE
            raise Unsupported(describe(f"adapter_config.json: {name}", "an adapter without it", repr(value), hint))
