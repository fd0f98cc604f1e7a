"""KerasHub's BLOOM with bloomref's weights.

KerasHub has no float64 model to compare with: on JAX, Keras's result type of float64 and float32 is float32, so that layer
norms and the softmax of a "float64" model are float32. It runs in float32 here, and what is compared is its distance
from bloomref's float64 model with the distance of bloomref's own float32 model.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub
import numpy as np

from bloomref.config import BloomConfig
from bloomref.params import Params, Weight

from parity.cases import Case


def backbone(config: BloomConfig, params: Params) -> Any:
    """A BloomBackbone in float32 whose every variable is set from bloomref's table of Keras paths and axes."""
    model = keras_hub.models.BloomBackbone(**config.to_keras(), dtype="float32")
    unset = {variable.path for variable in model.weights}
    for key, weight, array in params.named():
        for path, value in stored(weight, array):
            variable = _variable(model, key, path)
            variable.assign(value.astype(np.float32))
            unset.remove(variable.path)
    assert not unset
    return model


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
    wanted = keras_axes.replace("(", "").replace(")", "").replace(",", " ").split()
    groups = [len(group.strip("( )").split()) for group in keras_axes.split(",")]
    ordered = array.transpose([axes.split().index(letter) for letter in wanted])
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
    if key.startswith("h."):
        layer = model.transformer_layers[int(key.split(".")[1])]
    else:
        layer = first[names.pop(0)]
    for name in names:
        layer = getattr(layer, name)
    return layer.weights[int(index)]


def hidden(model: Any, case: Case) -> np.ndarray:
    """The final hidden states; the functional model has no call without a mask, so a full mask stands for none."""
    inputs = {"token_ids": case.token_ids.astype(np.int32), "padding_mask": case.is_real.astype(np.int32)}
    return np.asarray(model(inputs))


def logits(model: Any, case: Case) -> np.ndarray:
    """What BloomCausalLM answers."""
    inputs = {"token_ids": case.token_ids.astype(np.int32), "padding_mask": case.is_real.astype(np.int32)}
    return np.asarray(keras_hub.models.BloomCausalLM(backbone=model)(inputs))
