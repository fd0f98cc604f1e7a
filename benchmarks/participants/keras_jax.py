"""KerasHub on JAX: `call_with_cache`, on which its `generate` is built, compiled by XLA for each shape.

KerasHub's `generate` pads a prompt to the final length before the prefill. Here the prompt is not padded, and the LM
head is applied to the last position only; both can only be faster.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.participants.protocol import Stepwise


def convert(folder: Path, _dtype: str) -> None:
    from bloomref.formats.layouts import keras
    from bloomref.formats.layouts.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder / "model")
    keras.save(folder / "keras", checkpoint.config, checkpoint.params(None))


class Model(Stepwise):
    def __init__(self, folder: Path, dtype: str, _name: str, _threads: int) -> None:
        os.environ |= {"KERAS_BACKEND": "jax", "JAX_COMPILATION_CACHE_DIR": str(folder / "keras_compiled")}
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        import jax
        import keras
        import keras_hub

        self.keras = keras
        backbone = keras_hub.models.BloomBackbone.from_preset(str(folder / "keras"), dtype=dtype)
        self.model = keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)
        self.variables = self.model.variables
        self.values = [variable.value for variable in self.variables]
        self.call = jax.jit(self._call, donate_argnums=1)

    def _call(self, values: Any, cache: Any, ids: Any, index: Any) -> tuple[Any, Any]:
        with self.keras.StatelessScope(state_mapping=list(zip(self.variables, values, strict=True))):
            _, hidden, cache = self.model.call_with_cache(ids, cache, index)
            logits = self.model.backbone.token_embedding(hidden[:, -1:], reverse=True)
        return logits[:, 0].astype("float32"), cache

    def read(self, ids: Any, steps: int) -> Any:
        backbone = self.model.backbone
        width = backbone.hidden_dim // backbone.num_heads
        shape = (len(ids), backbone.num_layers, 2, ids.shape[1] + steps, backbone.num_heads, width)
        self.cache = self.keras.ops.zeros(shape, dtype=self.model.compute_dtype)
        self.position = 0
        return self.step(ids)

    def step(self, ids: Any) -> Any:
        logits, self.cache = self.call(self.values, self.cache, ids.astype(np.int32), self.position)
        self.position += ids.shape[1]
        return np.asarray(logits)
