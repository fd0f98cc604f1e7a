"""KerasHub: a `.lora.h5` file lacks the biases that were trained too, so the loaded model differs."""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np


def model(dtype="float32", heads=4):
    rng, backbone = np.random.default_rng(0), keras_hub.models.BloomBackbone(97, 2, heads, 64, 256, dtype=dtype)
    for w in backbone.weights:  # initial biases are 0 and gains 1, which hides mistakes
        w.assign(("gamma" in w.path) + 0.3 * rng.standard_normal(w.shape).astype("float32"))
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


x = {"token_ids": np.arange(8)[None], "padding_mask": np.ones((1, 8), int)}
it, again = model().backbone, model().backbone
it.enable_lora(4)
for w in it.trainable_weights:  # as training would
    w.assign(w + 0.05)
with tempfile.TemporaryDirectory() as folder:
    it.save_lora_weights(f"{folder}/a.lora.h5")
    again.load_lora_weights(f"{folder}/a.lora.h5")
print(
    f"{abs(np.asarray(it(x)) - np.asarray(again(x))).max():.3g} apart; trained: { ({w.name for w in it.trainable_weights}) }"
)
