"""Names of the tensors in a Hugging Face checkpoint: which belong to the model, which are ignored or refused.

A tensor is refused only where ignoring it could change the result (WGT-5, WGT-15).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from bloomref.errors import BadWeights, BloomrefError, Unsupported
from bloomref.formats.folder_contents import QUANTISED_HINT
from bloomref.params import HF_PREFIX, LM_HEAD, WORD_EMBEDDING, Weight
from bloomref.validation import mismatch

# first parts of the names below which every tensor takes part in the computation
_BODY = ("h", "word_embeddings", "word_embeddings_layernorm", "ln_f", "lm_head")
# top-level modules of other models and of prompt tuning, whose output a BLOOM would add to its embeddings
_ALSO_USED = (
    "wpe",
    "wte",
    "position_embeddings",
    "embed_positions",
    "prompt_encoder",
    "prompt_embeddings",
    "prefix_encoder",
)
# buffers without information, in checkpoints of transformers before 4.21 and of converters
_INERT = ("h.*.causal_mask", "h.*.masked_bias", "position_ids")
# end of a name -> what it belongs to
_QUANTISED: tuple[tuple[str, str], ...] = (
    (r"\.SCB|\.weight_format", "bitsandbytes int8"),
    (r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)", "bitsandbytes, 4 bits"),
    (r"\.(g_idx)", "GPTQ"),
    (r"\.(qweight|qzeros|scales)", "GPTQ or AWQ"),
    (r"\.(q_weight|q_scale|q_invperm|q_groups)", "EXL2"),
    (r"\.(weight_packed|weight_scale|weight_zero_point|weight_shape|input_scale)", "compressed-tensors"),
    (r"\.weight_scale_inv", "FP8"),
    (r"\.weight\._(data|scale|shift)", "quanto"),
    (r"\.(W_q|meta)", "HQQ"),
)  # fmt: skip
_ADAPTED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|ia3_l|modules_to_save)(\.|$)")


def key_of(name: str) -> str:
    """The key of a stored name: its prefix `transformer.` counts for nothing (WGT-2)."""
    return name.removeprefix(HF_PREFIX)


def is_used(name: str) -> bool:
    """True if a tensor of this stored name could take part in the computation of hidden states or logits."""
    key = key_of(name)
    if any(fnmatchcase(key, pattern) for pattern in _INERT):
        return False
    return key != name or key.partition(".")[0] in (*_BODY, *_ALSO_USED)


def check_names(expected: Mapping[str, Weight], names: Mapping[str, str]) -> None:
    """Refuse a checkpoint that lacks a weight, or has one more that takes part in the computation.

    Args:
        expected: keys of the model.
        names: key -> stored name, of all tensors of the checkpoint.

    Raises:
        BadWeights, Unsupported: the message names the tensor and what it is.
    """
    unknown = [key for key, name in names.items() if key not in expected and is_used(name)]
    if error := _quantised(unknown) or _adapted(unknown):
        raise error
    known = [key for key in names if key in expected]
    if difference := mismatch(expected, [*known, *unknown]):
        hint = _hint(expected, names.values(), unknown)
        problem = f"weights: expected the {len(expected)} tensors that config.json needs; {difference}"
        raise BadWeights(problem + (f"; {hint}" if hint else ""))


def _quantised(keys: Iterable[str]) -> BloomrefError | None:
    for pattern, method in _QUANTISED:
        key = next((key for key in keys if re.search(f"({pattern})$", key)), None)
        if key is not None:
            return Unsupported(f"{key}: these weights are quantised ({method}); {QUANTISED_HINT}")
    return None


def _adapted(keys: Iterable[str]) -> BloomrefError | None:
    key = next((key for key in keys if _ADAPTED.search(key)), None)
    if key is None:
        return None
    hint = "merge the adapter with PEFT's merge_and_unload() before saving, or save the adapter alone and pass it as --adapter"
    return Unsupported(f"{key}: expected the weights of a model, got an adapter inside it; {hint}")


def _hint(expected: Collection[str], names: Collection[str], unknown: list[str]) -> str:
    if wrapper := _wrapper(expected, names):
        return (
            f"every name begins with {wrapper!r}: save the model inside the wrapper, or remove that part of the names"
        )
    layers = [int(key.split(".")[1]) for key in unknown if re.match(r"h\.\d{1,9}\.input_layernorm", key)]
    if layers:
        return f"the weights have {max(layers) + 1} layers, n_layer in config.json says otherwise"
    return "to ignore it could change the result" if unknown else ""


def _wrapper(expected: Collection[str], names: Collection[str]) -> str:
    """The prefix that a wrapped model puts before every name, such as `module.` of torch's DDP."""
    wrappers = Counter(
        name.removesuffix(WORD_EMBEDDING.hf_key).removesuffix(HF_PREFIX)
        for name in names
        if name.endswith(WORD_EMBEDDING.hf_key)
    )
    wrapper = next((prefix for prefix in wrappers if prefix), "")
    inside = {key_of(name.removeprefix(wrapper)) for name in names if name.startswith(wrapper)}
    return wrapper if wrapper and set(expected) - {LM_HEAD.hf_key} <= inside else ""
