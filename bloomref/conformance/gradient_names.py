"""Names and shapes of gradients, as implementations return them. Clause: GRD-4."""

import re
from collections.abc import Iterator, Mapping

from bloomref.config import BloomConfig
from bloomref.formats.adapters import keras_lora, peft
from bloomref.lora.adapter import DENSE_LAYERS
from bloomref.params import LAYER_WEIGHTS, PROJECTIONS, full_key, keys
from bloomref.shapes import Array

_LINEAR = re.compile(r"(.+)\.lora_([AB])\.[^.]+\.weight")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])\.[^.]+")
_HEADS = re.compile(r"h\.(\d+)\..+\.(\w+)\.lora_kernel_([ab])\.[^.]+")
_DENSE = {
    weight.hf_key.removesuffix(".weight"): dense
    for dense, attribute in DENSE_LAYERS.items()
    for weight in LAYER_WEIGHTS
    if weight.attribute == attribute and attribute != "qkv_weight"
}


def named(config: BloomConfig, gradients: Mapping[str, Array], form: str = "peft") -> dict[str, Array]:
    """Return gradients under the names and in the shapes of files.

    Args:
        gradients: by the keys of `params.keys` and `lora.factors`.
        form: of the adapter, one of `lora_cases.FORMS`.
    """
    return dict(_named(config, gradients, form))


def _named(config: BloomConfig, gradients: Mapping[str, Array], form: str) -> Iterator[tuple[str, Array]]:
    weights = dict(keys(config))
    for key, array in gradients.items():
        if key in weights:
            yield full_key(key), array.reshape(weights[key].hf_shape(config))
        else:
            yield peft_factor(key, array) if form == "peft" else keras_factor(key, array)


def peft_factor(key: str, gradient: Array) -> tuple[str, Array]:
    """Name and gradient of a factor in an adapter folder of PEFT (LRA-10)."""
    if match := _EMBEDDING.fullmatch(key):
        return peft.factor_name(f"{match[1]}.lora_embedding_{match[2]}"), gradient
    match = _LINEAR.fullmatch(key)
    assert match is not None, key
    return peft.factor_name(f"{match[1]}.lora_{match[2]}.weight"), gradient


def keras_factor(key: str, gradient: Array) -> tuple[str, Array]:
    """Name and gradient of a factor in a `.lora.h5` file (LRA-11). Those of plain linear layers are transposed."""
    if match := _HEADS.fullmatch(key):
        assert match[2] in PROJECTIONS, key
        return keras_lora.factor_name(int(match[1]), f"{match[2]}_dense", match[3]), gradient
    match = _LINEAR.fullmatch(key)
    assert match is not None, key
    _, layer, module = match[1].split(".", 2)
    return keras_lora.factor_name(int(layer), _DENSE[module], match[2].lower()), gradient.T
