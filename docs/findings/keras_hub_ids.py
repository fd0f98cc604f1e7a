"""KerasHub on JAX: illegal ids and masks are silently accepted."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np


def model(dtype="float32", heads=4):
    rng, backbone = np.random.default_rng(0), keras_hub.models.BloomBackbone(97, 2, heads, 64, 256, dtype=dtype)
    for w in backbone.weights:  # initial biases are 0 and gains 1, which hides mistakes
        w.assign(("gamma" in w.path) + 0.3 * rng.standard_normal(w.shape).astype("float32"))
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


def call(last, first_mask=1):
    ids, mask = np.array([[7, 8, 9, last]]), np.array([[first_mask, 1, 1, 1]])
    return np.asarray(it({"token_ids": ids, "padding_mask": mask}))[0, 1:]


it = model()
for one, two in ((-1, 96), (2**32 + 5, 5), (5.9, 5)):
    print(f"id {one} is row {two}: {np.array_equal(call(one), call(two))}")
print(
    f"id 97 of 97 gives NaN: {np.isnan(call(97)[-1]).all()}; mask 0.3 is padding: {np.array_equal(call(5, 0.3), call(5, 0))}"
)
