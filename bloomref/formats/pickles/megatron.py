"""Layer files of Megatron-DeepSpeed, as BigScience trained BLOOM: `layer_NN-model_MM-model_states.pt`.

NN counts the stages of the pipeline. Stage 1 is the embedding with its norm, stages 3 to L + 2 are the L blocks, stage
L + 4 is the final norm; the others have no weights (Megatron-DeepSpeed, megatron/model/gpt_model.py). MM counts the
slices of tensor parallelism: a layer that is parallel in its columns has slices of the rows of its stored weight and
bias, one that is parallel in its rows has slices of the columns; all else is repeated in each slice. Repeated weights
that differ are averaged, as convert_bloom_original_checkpoint_to_pytorch.py of transformers does. Clause: WGT-32.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.errors import BadWeights, describe
from bloomref.formats.pickles.pickle_machine import Inert
from bloomref.formats.pickles.torch_file import TorchFile
from bloomref.params import HF_PREFIX
from bloomref.shapes import Array

ARGUMENTS = "mp_rank_00_model_states.pt"
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_FIRST_BLOCK = 3
_ENDS = {
    "word_embeddings.weight": "word_embeddings.weight",
    "word_embeddings.norm.weight": "word_embeddings_layernorm.weight",
    "word_embeddings.norm.bias": "word_embeddings_layernorm.bias",
    "weight": "ln_f.weight",
    "bias": "ln_f.bias",
}
"""Name of a weight outside of the blocks -> Hugging Face key."""
_AXES = {
    "word_embeddings.weight": 0,
    "self_attention.query_key_value.weight": 0,
    "self_attention.query_key_value.bias": 0,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "self_attention.dense.weight": 1,
    "mlp.dense_4h_to_h.weight": 1,
}
"""Name of a weight that is split -> the axis of its slices."""
_ALIBI = 3  # of Megatron-DeepSpeed's PositionEmbeddingType
_FIELDS = {
    "vocab_size": ("padded_vocab_size", int),
    "hidden_size": ("hidden_size", int),
    "n_layer": ("num_layers", int),
    "n_head": ("num_attention_heads", int),
    "intermediate_size": ("ffn_hidden_size", int),
    "layer_norm_epsilon": ("layernorm_epsilon", float),
    "apply_residual_connection_post_layernorm": ("apply_residual_connection_post_layernorm", bool),
    "attention_dropout": ("attention_dropout", float),
    "hidden_dropout": ("hidden_dropout", float),
    "initializer_range": ("init_method_std", float),
}
"""Key of config.json -> name and type of Megatron's argument."""


def layers(folder: Path) -> list[list[Path]]:
    """Layer files of a folder: for each layer, in order, the files of its slices; empty if the folder has none.

    Raises:
        BadWeights: when a slice is missing.
    """
    by_layer: dict[int, dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := _LAYER.fullmatch(path.name):
            by_layer.setdefault(int(match[1]), {})[int(match[2])] = path
    count = max((len(slices) for slices in by_layer.values()), default=0)
    for number, slices in by_layer.items():
        if sorted(slices) != list(range(count)):
            expected = f"slices 0 to {count - 1}, as other layers have"
            raise BadWeights(describe(f"layer_{number:02}-model_*-model_states.pt", expected, str(sorted(slices))))
    return [[by_layer[number][part] for part in range(count)] for number in sorted(by_layer)]


def joined(files: Sequence[TorchFile]) -> dict[str, Array]:
    """Weights of one layer, its slices joined.

    Args:
        files: the slices, in order.

    Returns:
        Hugging Face key -> array. Weights of a single slice are views of its file.

    Raises:
        BadWeights: when the slices do not fit together.
    """
    slices, label = [file.tensors() for file in files], files[0].path.name
    if any(part.keys() != slices[0].keys() for part in slices):
        raise BadWeights(f"{label}: expected the same names in each slice of the layer, got others")
    block = int(_LAYER.fullmatch(label)[1]) - _FIRST_BLOCK  # type: ignore[index]  # `layers` has matched it
    weights: dict[str, Array] = {}
    for name in slices[0]:
        parts = [file.view(part[name]) for file, part in zip(files, slices, strict=True)]
        key = HF_PREFIX + _ENDS.get(name, f"h.{block}.{name}")
        weights[key] = _join(parts, _AXES.get(name), f"{label}: {name!r:.80}")
    return weights


def _join(parts: Sequence[Array], axis: int | None, label: str) -> Array:
    others = {(part.dtype, *(n for i, n in enumerate(part.shape) if i != axis)) for part in parts}
    if len(others) > 1 or any(part.ndim <= (axis or 0) for part in parts):
        shapes = ", ".join(f"{part.dtype.name} {part.shape}" for part in parts)
        raise BadWeights(describe(label, "slices that fit together", shapes))
    if len(parts) == 1 or (axis is None and all(part.tobytes() == parts[0].tobytes() for part in parts)):
        return parts[0]
    if axis is not None:
        return np.concatenate(parts, axis)
    total = parts[0].copy()
    with np.errstate(all="ignore"):  # infinities are refused with the whole model
        for part in parts[1:]:
            total += part  # in the stored dtype, as transformers adds them
        return (total / len(parts)).astype(total.dtype)


def config(folder: Path) -> dict[str, Any]:
    """A `config.json` for transformers, from the arguments of the training in `mp_rank_00_model_states.pt`.

    Raises:
        BadWeights: when the arguments cannot be read, lack a size, or describe another model than BLOOM.
    """
    hint = "pass --config with the model's config.json"
    if not (folder / ARGUMENTS).exists():
        raise BadWeights(describe(f"{folder}", f"config.json or {ARGUMENTS}", "neither", hint))
    try:
        value = TorchFile(folder / ARGUMENTS, inert=True).value
    except BadWeights as error:
        raise BadWeights(f"{error}; {hint}") from error
    arguments = value.get("args") if type(value) is dict else None
    state = arguments.state if isinstance(arguments, Inert) else None
    if type(state) is not dict:
        raise BadWeights(describe(f"{ARGUMENTS}: args", "the arguments of a training", type(arguments).__name__, hint))
    position = state.get("position_embedding_type")
    if isinstance(position, Inert) and position.arguments != (_ALIBI,):
        raise BadWeights(f"{ARGUMENTS}: position_embedding_type: expected ALiBi, as BLOOM has, got another one")
    return {"architectures": ["BloomForCausalLM"], "model_type": "bloom", **_fields(state, hint)}


def _fields(state: Mapping[str, Any], hint: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, (name, kind) in _FIELDS.items():
        value = state.get(name)
        if type(value) is kind:
            fields[key] = value
        elif kind is int:
            raise BadWeights(describe(f"{ARGUMENTS}: {name}", "an integer", type(value).__name__, hint))
    if fields["intermediate_size"] == 4 * fields["hidden_size"]:
        del fields["intermediate_size"]
    return fields
