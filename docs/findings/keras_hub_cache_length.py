"""KerasHub: in 16 bits, the logits of a prompt depend on the length of the cache."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import ml_dtypes  # noqa: F401 - NumPy then knows bfloat16
import numpy as np


def model(dtype="float32", heads=4):
    rng, backbone = np.random.default_rng(0), keras_hub.models.BloomBackbone(97, 2, heads, 64, 256, dtype=dtype)
    for w in backbone.weights:  # initial biases are 0 and gains 1, which hides mistakes
        w.assign(("gamma" in w.path) + 0.3 * rng.standard_normal(w.shape).astype("float32"))
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


def logits(length, dtype):
    cache = np.zeros((1, 2, 2, length, 16, 4), "float32")
    got = model(dtype, 16).call_with_cache(np.arange(12)[None], cache.astype(dtype), 0)[0]
    return np.asarray(got).astype("float32")


for dtype in ("float32", "float16", "bfloat16"):
    true = logits(12, "float32")
    print(dtype, {n: f"{np.linalg.norm(logits(n, dtype) - true) / np.linalg.norm(true):.2g}" for n in (12, 256, 2048)})
