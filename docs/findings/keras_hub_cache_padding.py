"""KerasHub: the cached path has no mask, so left padding counts as text."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np


def model(dtype="float32", heads=4):
    rng, backbone = np.random.default_rng(0), keras_hub.models.BloomBackbone(97, 2, heads, 64, 256, dtype=dtype)
    for w in backbone.weights:  # initial biases are 0 and gains 1, which hides mistakes
        w.assign(("gamma" in w.path) + 0.3 * rng.standard_normal(w.shape).astype("float32"))
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


it, ids, mask = model(), np.arange(8)[None], np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
masked, unmasked = (np.asarray(it({"token_ids": ids, "padding_mask": m}))[0, 3:] for m in (mask, np.ones((1, 8))))
cached = np.asarray(it.call_with_cache(ids, np.zeros((1, 2, 2, 8, 4, 16), "float32"), 0)[0])[0, 3:]
print(f"over a cache: {abs(cached - masked).max():.3g} of {abs(masked).max():.3g} from the call with the mask,")
print(f"{abs(cached - unmasked).max():.2g} from the call without")
