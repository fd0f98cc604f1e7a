"""Adapters from and to the files of PEFT and of KerasHub, and the exact conversions between their two forms.

PEFT has one A for all rows of a matrix; KerasHub has one A for each head and one B for all heads. Neither form
represents the other's adapters at the same rank, but both represent every matrix at a high enough rank (LRA-14):

    KerasHub's query, key or value of rank R is a matrix of rank H R in PEFT's form. The A of each head occupies R rows
    of A; B is repeated as a block for each head. Several projections of one weight are concatenated along the rank.

    PEFT's fused matrix is three projections of rank K, the head width, in KerasHub's form. B is the identity, and the A
    of each head is that head's part of scale B A.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.errors import InvalidInput, describe
from bloomref.formats.adapters import keras_lora, peft, peft_tensors
from bloomref.formats.adapters.peft_config import LoraConfig
from bloomref.formats.adapters.peft_tensors import OTHERS, PeftTensors
from bloomref.lora.adapter import DENSE_LAYERS, ROWS, Adapter, Parts, from_keras, from_peft
from bloomref.params import PROJECTIONS, LoraFactors, layer_key
from bloomref.reference import lora
from bloomref.shapes import Array

_DENSE = {attribute: dense for dense, attribute in DENSE_LAYERS.items() if attribute != "qkv_weight"}


def load(path: Path, name: str, config: BloomConfig, dtype: DType) -> Adapter:
    """Read the adapter in a folder of PEFT or a file of KerasHub.

    Raises:
        BadWeights, Unsupported: see the readers in `formats.adapters.peft` and `formats.adapters.keras_lora`.
    """
    if path.is_dir():
        settings, tensors = peft.read(path, config)
        return from_peft(name, settings, tensors, dtype)
    _, kernels = keras_lora.read(path, config)
    return from_keras(name, kernels, dtype)


def is_adapter(path: Path) -> bool:
    """True if the path is an adapter of PEFT or of KerasHub."""
    return peft.exists(path) or path.name.endswith(keras_lora.SUFFIX)


def describe_files(path: Path) -> dict[str, Any]:
    """Facts of an adapter's files, read without a model: format, modules or number of adapted layers, parameters.

    Raises:
        BadWeights, Unsupported: the files are damaged, or not plain LoRA.
    """
    if not path.is_dir():
        shapes = {name: variable.shape for name, variable in keras_lora.variables(path).items()}
        kernels = [shape for name, shape in shapes.items() if name.endswith(("lora_kernel_a", "lora_kernel_b"))]
        return {"format": "KerasHub", "layers": len(kernels) // 2, "parameters": sum(map(math.prod, kernels))}
    settings, entries = peft.read_config(path), peft.open_file(path).entries
    facts: dict[str, Any] = {"modules": settings.target_modules, "rank": settings.r, "alpha": settings.lora_alpha}
    facts |= {"replaced": peft_tensors.replaced(entries), "rows": settings.trainable_token_indices}
    facts |= {"dora": settings.use_dora, "base": settings.facts.get("base_model_name_or_path")}
    present = {name: value for name, value in facts.items() if value}
    return {"format": "PEFT", **present, "parameters": sum(math.prod(entry.shape) for entry in entries.values())}


def save(path: Path, adapter: Adapter, config: BloomConfig, expand: bool, overwrite: bool = False) -> None:
    """Write an adapter: KerasHub's format for a name that ends in `.h5`, else PEFT's folder.

    Args:
        expand: write exact factors of a higher rank where the format has none of this rank.
        overwrite: replace the adapter in a folder that has one. A file is always replaced.

    Raises:
        InvalidInput: the format cannot represent the adapter, or only with `expand`.
    """
    if path.name.endswith(".h5"):
        r, kernels = _kernels(adapter, config, expand)
        keras_lora.save(path, r, kernels)
    else:
        peft.save(path, *_tensors(adapter, expand), overwrite)


# --- PEFT --------------------------------------------------------------------------------------------------------


def _tensors(adapter: Adapter, expand: bool) -> tuple[LoraConfig, PeftTensors]:
    if adapter.config is not None:
        pairs = {key: (part.a, part.b) for key, (part,) in adapter.parts.items()}
        return adapter.config, PeftTensors(pairs, **{kind: getattr(adapter, kind) for kind in OTHERS})
    if not expand and _has_kind(adapter, "heads"):
        hint = "expand=True writes the exact equal, of rank H R for each of query, key and value; or save as .lora.h5"
        raise InvalidInput(
            describe("adapter", "one A for a whole matrix, PEFT's form", "one for each head, of rank R", hint)
        )
    pairs = {key: _joined([_matrix(part) for part in parts]) for key, parts in adapter.parts.items()}
    return _settings({key: len(a) for key, (a, _) in pairs.items()}), PeftTensors(pairs)


def _has_kind(adapter: Adapter, kind: str) -> bool:
    return any(part.kind == kind for parts in adapter.parts.values() for part in parts)


def _matrix(part: LoraFactors) -> tuple[Array, Array]:
    """A and B of the whole matrix, of scale 1."""
    if part.kind != "heads":
        return part.a, part.b
    width, heads, r = part.a.shape
    b = np.zeros((heads, 3, part.b.shape[1], heads, r), part.b.dtype)
    for head in range(heads):
        b[head, part.projection, :, head] = part.b.T
    return part.a.transpose(1, 2, 0).reshape(heads * r, width), b.reshape(-1, heads * r)


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], axis=1)


def _settings(ranks: Mapping[str, int]) -> LoraConfig:
    """Settings for factors of these ranks (Hugging Face key -> R) and of scale 1."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    names = {key: key.removesuffix(".weight") for key in ranks}
    others = {re.escape(names[key]): r for key, r in ranks.items() if r != common}
    alphas: dict[str, float] = dict(others)
    targets = tuple(names.values())
    return LoraConfig(r=common, lora_alpha=common, target_modules=targets, rank_pattern=others, alpha_pattern=alphas)


# --- KerasHub ----------------------------------------------------------------------------------------------------


def _kernels(adapter: Adapter, config: BloomConfig, expand: bool) -> tuple[int, keras_lora.Kernels]:
    if adapter.changes_weights or adapter.heads:
        got = "an adapter of PEFT that also replaces or rescales weights"
        raise InvalidInput(describe("adapter", "low-rank factors alone, as a .lora.h5 file has", got, "save a folder"))
    if _has_kind(adapter, "embedding"):
        raise InvalidInput(
            "adapter: expected factors of dense layers, got some of the embedding; KerasHub cannot save them"
        )
    kernels = _all_kernels(adapter.parts, config, expand)
    r = max(b.shape[0] for _, b in kernels.values())
    if not expand and any(b.shape[0] != r for _, b in kernels.values()):
        ranks = sorted({part.rank for parts in adapter.parts.values() for part in parts})
        hint = "expand=True pads with zeros"
        raise InvalidInput(describe("adapter", "a single rank, as a .lora.h5 file has", str(ranks), hint))
    return r, {place: (_padded(a, a.ndim - 1, r), _padded(b, 0, r)) for place, (a, b) in kernels.items()}


def _all_kernels(parts: Parts, config: BloomConfig, expand: bool) -> keras_lora.Kernels:
    kernels: keras_lora.Kernels = {}
    for layer in range(config.num_layers):
        for attribute in ("qkv_weight", *_DENSE):
            for part in parts.get(layer_key(layer, ROWS[attribute]), ()):
                for dense, pair in _dense_kernels(part, attribute, config, expand).items():
                    kernels[layer, dense] = pair
    return kernels


def _dense_kernels(
    part: LoraFactors, attribute: str, config: BloomConfig, expand: bool
) -> dict[str, tuple[Array, Array]]:
    if part.kind == "heads":
        return {f"{PROJECTIONS[part.projection]}_dense": (part.a, part.b)}
    if attribute != "qkv_weight":
        return {_DENSE[attribute]: (part.a.T, part.scale * part.b.T)}
    if not expand:
        hint = f"expand=True writes the exact equal, of rank K = {config.head_dim}; or save as a folder of PEFT"
        raise InvalidInput(describe("adapter", "one A for each head, KerasHub's form", "one for a whole matrix", hint))
    delta = lora.delta_weight(part).reshape(ROWS[attribute].shape(config))  # (H, C, K, D)
    identity = np.eye(config.head_dim, dtype=delta.dtype)
    return {f"{name}_dense": (delta[:, c].transpose(2, 0, 1), identity) for c, name in enumerate(PROJECTIONS)}


def _padded(array: Array, axis: int, size: int) -> Array:
    """Pad the end of an axis with zeros, up to `size`."""
    widths = [(0, size - n if i == axis else 0) for i, n in enumerate(array.shape)]
    return np.pad(array, widths)
