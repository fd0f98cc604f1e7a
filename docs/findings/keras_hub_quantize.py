"""KerasHub: BloomBackbone.quantize raises before the first call of the model."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np


def model(dtype="float32", heads=4):
    rng, backbone = np.random.default_rng(0), keras_hub.models.BloomBackbone(97, 2, heads, 64, 256, dtype=dtype)
    for w in backbone.weights:  # initial biases are 0 and gains 1, which hides mistakes
        w.assign(("gamma" in w.path) + 0.3 * rng.standard_normal(w.shape).astype("float32"))
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


for calls in (0, 1):
    it = model().backbone
    for _ in range(calls):
        it({"token_ids": np.ones((1, 2), int), "padding_mask": np.ones((1, 2), int)})
    try:
        it.quantize("int8")
        print(f"after {calls} calls: quantized")
    except ValueError as error:
        print(f"after {calls} calls: {str(error)[:90]}")
