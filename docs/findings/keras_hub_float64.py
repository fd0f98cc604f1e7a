"""Keras on JAX: a float64 LayerNormalization computes in float32, as the softmax of KerasHub's BLOOM does."""

import os

os.environ |= {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"}
import keras
import numpy as np

x = np.random.default_rng(0).standard_normal((4, 64))
got = np.asarray(keras.layers.LayerNormalization(epsilon=1e-5, dtype="float64")(x))
true = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
print(
    f"{got.dtype}, off by {abs(got - true).max():.2g}; float64 with float32 is",
    keras.backend.result_type("float64", "float32"),
)
