"""Adapters from and to the files of PEFT and of KerasHub, and the exact conversions between their two forms.

PEFT has one A for all rows of a matrix; KerasHub has one A for each head, and one B for all of them. Neither form holds the
other's adapters of the same rank, but both hold every matrix at a high enough one (LRA-14):

    KerasHub's query, key or value at rank R is PEFT's at rank H R: the A of each head in its own R rows of A, and B
    repeated as a block for each head; several projections of one weight stand beside each other.

    PEFT's fused matrix is KerasHub's three at rank K, the width of a head: with the identity as the shared B, the A of each
    head is its own part of scale B A.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.errors import InvalidInput, describe
from bloomref.formats import keras_lora, peft
from bloomref.formats.peft_config import LoraConfig
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.lora.adapter import DENSE_LAYERS, ROWS, Adapter, Parts, from_keras, from_peft, rank
from bloomref.params import layer_key
from bloomref.reference import lora
from bloomref.shapes import Array

_DENSE = {attribute: dense for dense, attribute in DENSE_LAYERS.items() if attribute != "qkv_weight"}


def load(path: Path, name: str, config: BloomConfig, dtype: DType) -> Adapter:
    """The adapter in a folder of PEFT or a file of KerasHub.

    Raises:
        BadWeights, Unsupported: as the readers of `formats.peft` and `formats.keras_lora`.
    """
    if path.is_dir():
        settings, pairs = peft.read(path, config)
        return from_peft(name, config, settings, pairs, dtype)
    _, kernels = keras_lora.read(path, config)
    return from_keras(name, config, kernels, dtype)


def is_adapter(path: Path) -> bool:
    """Whether a path leads to an adapter, of either kind."""
    return peft.exists(path) or path.name.endswith(keras_lora.SUFFIX)


def describe_files(path: Path) -> dict[str, Any]:
    """What an adapter's files say without its model: format, modules or the number of adapted layers, parameters.

    Raises:
        BadWeights, Unsupported: when they are damaged, or no plain LoRA.
    """
    if not path.is_dir():
        shapes = {name: variable.shape for name, variable in keras_lora.variables(path).items()}
        kernels = [shape for name, shape in shapes.items() if name.endswith(("lora_kernel_a", "lora_kernel_b"))]
        return {"format": "KerasHub", "layers": len(kernels) // 2, "parameters": sum(map(math.prod, kernels))}
    settings, entries = peft.read_config(path), SafetensorsFile(path / peft.WEIGHTS).entries
    said = {"modules": settings.target_modules, "rank": settings.r, "alpha": settings.lora_alpha}
    return {"format": "PEFT", **said, "parameters": sum(math.prod(entry.shape) for entry in entries.values())}


def save(path: Path, adapter: Adapter, config: BloomConfig, expand: bool) -> None:
    """Write an adapter in the format that the path's name tells.

    Raises:
        InvalidInput: when the format has no such adapter, or only one of a higher rank and `expand` is False.
    """
    if path.name.endswith(".h5"):
        r, kernels = _kernels(adapter, config, expand)
        keras_lora.save(path, r, kernels)
    else:
        peft.save(path, *_pairs(adapter, expand))


# --- PEFT --------------------------------------------------------------------------------------------------------


def _pairs(adapter: Adapter, expand: bool) -> tuple[LoraConfig, peft.Pairs]:
    if adapter.config is not None:
        return adapter.config, {key: (part.a, part.b) for key, (part,) in adapter.parts.items()}
    if not expand and any(isinstance(part, lora.HeadAdapter) for found in adapter.parts.values() for part in found):
        hint = "expand=True writes the exact equal, of rank H R for each of query, key and value; or save as .lora.h5"
        raise InvalidInput(
            describe("adapter", "one A for a whole matrix, PEFT's form", "one for each head, of rank R", hint)
        )
    pairs = {key: _joined([_linear(part) for part in found]) for key, found in adapter.parts.items()}
    return _settings({key: len(a) for key, (a, _) in pairs.items()}), pairs


def _linear(part: lora.Adapter) -> tuple[Array, Array]:
    """A and B of the whole matrix, of scale 1."""
    if not isinstance(part, lora.HeadAdapter):
        return part.a, part.b
    width, heads, r = part.a.shape
    b = np.zeros((heads, 3, part.b.shape[1], heads, r), part.b.dtype)
    for head in range(heads):
        b[head, part.projection, :, head] = part.b.T
    return part.a.transpose(1, 2, 0).reshape(heads * r, width), b.reshape(-1, heads * r)


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], axis=1)


def _settings(ranks: Mapping[str, int]) -> LoraConfig:
    """The config of factors of these ranks and of scale 1."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    names = {key: key.removesuffix(".weight") for key in ranks}
    others = {rf"{names[key]}".replace(".", r"\."): r for key, r in ranks.items() if r != common}
    alphas: dict[str, float] = dict(others)
    targets = tuple(names.values())
    return LoraConfig(r=common, lora_alpha=common, target_modules=targets, rank_pattern=others, alpha_pattern=alphas)


# --- KerasHub ----------------------------------------------------------------------------------------------------


def _kernels(adapter: Adapter, config: BloomConfig, expand: bool) -> tuple[int, keras_lora.Kernels]:
    if any(isinstance(part, lora.EmbeddingAdapter) for found in adapter.parts.values() for part in found):
        raise InvalidInput(
            "adapter: expected one of dense layers, got one of the embedding, which KerasHub cannot save"
        )
    kernels = _all_kernels(adapter.parts, config, expand)
    r = max(b.shape[0] for _, b in kernels.values())
    if not expand and any(b.shape[0] != r for _, b in kernels.values()):
        ranks = sorted({rank(part) for found in adapter.parts.values() for part in found})
        hint = "expand=True fills up with zeros"
        raise InvalidInput(describe("adapter", "one rank, which is all that a .lora.h5 file can say", str(ranks), hint))
    return r, {place: (_filled(a, a.ndim - 1, r), _filled(b, 0, r)) for place, (a, b) in kernels.items()}


def _all_kernels(parts: Parts, config: BloomConfig, expand: bool) -> keras_lora.Kernels:
    kernels: keras_lora.Kernels = {}
    for layer in range(config.num_layers):
        for attribute in ("qkv_weight", *_DENSE):
            for part in parts.get(layer_key(layer, ROWS[attribute]), ()):
                for dense, pair in _dense_kernels(part, attribute, config, expand).items():
                    kernels[layer, dense] = pair
    return kernels


def _dense_kernels(
    part: lora.Adapter, attribute: str, config: BloomConfig, expand: bool
) -> dict[str, tuple[Array, Array]]:
    if isinstance(part, lora.HeadAdapter):
        return {f"{lora.PROJECTIONS[part.projection]}_dense": (part.a, part.b)}
    if attribute != "qkv_weight":
        return {_DENSE[attribute]: (part.a.T, part.scale * part.b.T)}
    if not expand:
        hint = f"expand=True writes the exact equal, of rank K = {config.head_dim}; or save as a folder of PEFT"
        raise InvalidInput(describe("adapter", "one A for each head, KerasHub's form", "one for a whole matrix", hint))
    delta = part.delta_weight()  # (H, C, K, D)
    identity = np.eye(config.head_dim, dtype=delta.dtype)
    return {f"{name}_dense": (delta[:, c].transpose(2, 0, 1), identity) for c, name in enumerate(lora.PROJECTIONS)}


def _filled(array: Array, axis: int, size: int) -> Array:
    """Zeros behind the end of an axis, up to `size`."""
    widths = [(0, size - n if i == axis else 0) for i, n in enumerate(array.shape)]
    return np.pad(array, widths)
