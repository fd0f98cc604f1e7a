"""The reference as a backend: its results equal those of `model.forward` bit for bit.

It has every optional capability but whole steps.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype, cast
from bloomref.params import LM_HEAD, Params, count_params
from bloomref.reference import model, vjp
from bloomref.reference.cache import Cache
from bloomref.reference.trace import in_layer, record, tap
from bloomref.runtime.backend import API_VERSION, Declaration, Memory, Step
from bloomref.shapes import Array, Bool, Float, Int


@dataclass(frozen=True, eq=False)
class NumpyPrepared:
    """The weights, unchanged, and the functions of `reference.model`."""

    params: Params
    config: BloomConfig

    @property
    def _dtype(self) -> np.dtype:
        return self.params.word_embedding.dtype

    def new_cache(self, batch: int, capacity: int) -> Cache:
        return Cache.empty(self.config, batch, capacity, self._dtype)

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return model.embed(self.params, self.config, token_ids)

    def attention_block(self, layer: int, x: Float[Array, "B T D"], cache: Cache, step: Step) -> Float[Array, "B T D"]:
        dtype = accumulation_dtype(self._dtype)
        view = step.derive("view", lambda: model.view(self.config, step.key_is_real, step.start, dtype))
        with in_layer(layer):
            y = model.attention_block(self.params.layers[layer], self.config, x, cache.layers[layer], view)
            return tap("attention_block", y)

    def mlp_block(self, layer: int, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        with in_layer(layer):
            return tap("mlp_block", model.mlp_block(self.params.layers[layer], self.config, x))

    def final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return model.final_norm(self.params, self.config, x)

    def logits(self, x: Float[Array, "B T D"], last_only: bool) -> Float[Array, "B _ V"]:
        return model.logits(self.params, x[:, -1:] if last_only else x)

    def to_host(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x

    def from_host(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x

    def copy_from_cache(
        self, cache: Cache, row: int, stop: int
    ) -> tuple[Float[Array, "L H S K"], Float[Array, "L H S K"]]:
        keys = np.stack([layer.keys[row, :, :stop] for layer in cache.layers])
        return keys, np.stack([layer.values[row, :, :stop] for layer in cache.layers])

    def copy_to_cache(
        self, cache: Cache, row: int, start: int, keys: Float[Array, "L H S K"], values: Float[Array, "L H S K"]
    ) -> None:
        for layer, key, value in zip(cache.layers, keys, values, strict=True):
            layer.keys[row, :, start : start + key.shape[1]] = key
            layer.values[row, :, start : start + value.shape[1]] = value

    def hidden_with_dropout(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], rng: np.random.Generator
    ) -> Float[Array, "B T D"]:
        return model.forward(self.params, self.config, token_ids, is_real, rng=rng)

    def trace(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], select: Callable[[str], bool]
    ) -> dict[str, Array]:
        with self.record(select) as intermediates:
            model.logits(self.params, model.forward(self.params, self.config, token_ids, is_real))
        return intermediates

    def record(self, select: Callable[[str], bool]) -> AbstractContextManager[dict[str, Array]]:
        return record(select)


class NumpyBackend:
    """Runs every model that BloomConfig accepts, in every policy."""

    name = "numpy"
    api_version = API_VERSION
    declaration = Declaration(products="float32", packages=("numpy", "ml_dtypes"))

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:  # noqa: ARG002
        return None

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> NumpyPrepared:
        return NumpyPrepared(params.map(lambda w: cast(cast(w, policy.variable_dtype), policy.compute_dtype)), config)

    prepare_with_adapters = prepare

    def loss_and_gradients(
        self,
        params: Params,
        config: BloomConfig,
        token_ids: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        document: Int[Array, "B T"],
        trainable: Callable[[str], bool],
        rng: np.random.Generator | None,
    ) -> tuple[float, dict[str, Array]]:
        is_real = document >= 0
        labels = np.roll(targets, 1, axis=1)  # the label of a position is the target of the one before (GRD-1)
        packed = document if (document > 0).any() else None  # one document a row needs no further mask
        result = vjp.loss_and_gradients(
            params, config, token_ids, is_real, labels, trainable=trainable, rng=rng, document=packed
        )
        return result.loss, result.gradients

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        """Estimate. In 16-bit policies a step widens one matrix at a time to the
        accumulation dtype; the head is the largest.
        """
        compute, wide = policy.compute_dtype, accumulation_dtype(policy.compute_dtype)
        weights = count_params(config) * compute.itemsize
        cache = 2 * config.num_layers * batch * length * config.hidden_dim * compute.itemsize
        widened = 0 if wide == compute else prod(LM_HEAD.shape(config)) * wide.itemsize
        return Memory(weights, cache, widened + batch * config.vocabulary_size * wide.itemsize)


def backend() -> NumpyBackend:
    return NumpyBackend()
