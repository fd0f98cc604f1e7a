"""KerasHub's BLOOM with bloomref's weights.

KerasHub has no float64 model to compare with: on JAX, Keras's result type of float64 and float32 is float32, so that
layer norms and the softmax of a "float64" model are float32. It runs in float32 here. Its distance from bloomref's
float64 model is compared with the distance of bloomref's float32 model.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub
import numpy as np
from parity.cases import ParityCase

from bloomref.config import BloomConfig
from bloomref.params import Params, Weight


class Peer:
    """KerasHub's BloomBackbone and BloomCausalLM in float32, on one set of weights."""

    def __init__(self, config: BloomConfig, params: Params) -> None:
        self.backbone = keras_hub.models.BloomBackbone(**config.to_keras(), dtype="float32")
        _assign(self.backbone, params)
        self.causal_lm = keras_hub.models.BloomCausalLM(backbone=self.backbone)

    def hidden(self, case: ParityCase) -> np.ndarray:
        """The final hidden states."""
        return np.asarray(self.backbone(_inputs(case)))

    def logits(self, case: ParityCase) -> np.ndarray:
        return np.asarray(self.causal_lm(_inputs(case)))

    def embed(self, token_ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.backbone.token_embedding(token_ids))

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        return np.asarray(self.backbone.token_embedding(hidden, reverse=True))


def _inputs(case: ParityCase) -> dict[str, np.ndarray]:
    """Inputs of KerasHub's model. It has no call without a mask, so an unpadded batch has a mask of ones."""
    return {"token_ids": case.token_ids.astype(np.int32), "padding_mask": case.is_real.astype(np.int32)}


def _assign(model: Any, params: Params) -> None:
    """Set every variable, each once, by the paths and axes of bloomref's table of weights."""
    unset = {variable.path for variable in model.weights}
    for key, weight, array in params.named():
        for path, value in stored(weight, array):
            variable = _variable(model, key, path)
            variable.assign(value.astype(np.float32))
            unset.remove(variable.path)
    assert not unset


def stored(weight: Weight, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(Keras path, array with the axes that Keras stores) of one weight: three for a fused query, key and value."""
    if "{C}" not in weight.keras_path:
        return [(weight.keras_path, _transposed(weight.axes, weight.keras_axes, array))]
    axes = weight.axes.split()
    axis = axes.index("C")
    rest = " ".join(axes[:axis] + axes[axis + 1 :])
    parts = np.moveaxis(array, axis, 0)
    return [
        (weight.keras_path.format(C=name), _transposed(rest, weight.keras_axes, part))
        for name, part in zip(("query", "key", "value"), parts, strict=True)
    ]


def _transposed(axes: str, keras_axes: str, array: np.ndarray) -> np.ndarray:
    """Reorder from `axes` to `keras_axes`, where a group in parentheses becomes one axis."""
    letters = keras_axes.replace("(", "").replace(")", "").replace(",", " ").split()
    groups = [len(group.strip("( )").split()) for group in keras_axes.split(",")]
    ordered = array.transpose([axes.split().index(letter) for letter in letters])
    stops = np.cumsum(groups)
    return ordered.reshape([int(np.prod(ordered.shape[a:b])) for a, b in zip([0, *stops[:-1]], stops, strict=True)])


def _variable(model: Any, key: str, path: str) -> Any:
    """The variable at a path such as `_self_attention_layer/_query_dense/vars/0`, in the layer that the key names."""
    *names, _, index = path.split("/")
    first = {
        "reversible_embedding": model.token_embedding,
        "layer_normalization": model.embeddings_layer_norm,
        "layer_normalization_1": model.layer_norm,
    }
    layer = model.transformer_layers[int(key.split(".")[1])] if key.startswith("h.") else first[names.pop(0)]
    for name in names:
        layer = getattr(layer, name)
    return layer.weights[int(index)]
