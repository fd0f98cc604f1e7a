"""LoRA hooks of an instrumented model: one overridable method for each decision. Clauses: LRA-1 ... LRA-5."""

from dataclasses import replace
from typing import Any, Self

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.lora.adapter import Adapter, Parts
from bloomref.params import LayerParams, LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array, Float


class LoraHooks:
    """The part of an `InstrumentedModel` that applies a LoRA adapter; without an adapter it changes nothing."""

    config: BloomConfig
    params: Params
    adapter: Adapter | None
    arithmetic: Any
    dtype: np.dtype[Any]

    def adapted(self, params: Params) -> Params:
        """Return the weights with the factors of the adapter attached."""
        return params if self.adapter is None else lora.attach(params, self.parts(self.adapter))

    def parts(self, adapter: Adapter) -> Parts:
        """Return the factors of the adapter, by the key of the weight."""
        return {key: tuple(self.part(key, part) for part in parts) for key, parts in adapter.parts.items()}

    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        """Return the factors that the model computes with. `key` names the weight: `h.0.mlp.dense_h_to_4h.weight`."""
        del key
        return replace(part, a=part.a.astype(self.dtype), b=part.b.astype(self.dtype))

    def adapt(self, owner: LayerParams | Params, attribute: str, x: Array, y: Array) -> Array:
        """Add the products of the factors and x to y, the product of the weight and x (LRA-1)."""
        for part in owner.adapters.get(attribute, ()):
            y = self.arithmetic.operand(y + self.delta(part, x))
        return y

    def delta(self, part: LoraFactors, x: Array) -> Float[Array, "B T M"]:
        """scale B A x; for an adapter of the embedding, x is the token ids."""
        return self.arithmetic.wide(part.scale * self.product(part, self.narrow(part, x)))

    def narrow(self, part: LoraFactors, x: Array) -> Array:
        """A x: (B, T, R), or (B, T, H, R) in KerasHub's form."""
        if part.kind == "embedding":
            return part.a.T[x]
        if part.kind == "heads":
            product: Array = self.arithmetic.matmul(x, part.a.reshape(len(part.a), -1))
            return product.reshape(*x.shape[:2], *part.a.shape[1:])
        return self.arithmetic.matmul(x, part.a.T)

    def product(self, part: LoraFactors, narrow: Array) -> Float[Array, "B T M"]:
        """B A x from A x; in KerasHub's form, in the rows of one projection of the fused weight."""
        if part.kind != "heads":
            return self.arithmetic.matmul(narrow, part.b.T)
        y = np.zeros((*narrow.shape[:3], 3, part.b.shape[1]), narrow.dtype)
        y[:, :, :, part.projection] = self.arithmetic.matmul(narrow, part.b)
        return y.reshape(*narrow.shape[:2], -1)

    def merged(self, storage: DType) -> Self:
        """The model without its adapter, on weights that include it (LRA-6).

        Args:
            storage: the dtype of the weights.
        """
        params = self.merged_weights(storage)
        config = self.config if params.lm_head is None else self.config.replace(tie_word_embeddings=False)
        build: Any = type(self)
        model: Self = build(config, params, self.arithmetic, self.dtype)
        return model

    def merged_weights(self, storage: DType) -> Params:
        return lora.merged(self.params, storage)

    def unmerged(self, merged: Self, storage: DType) -> Self:
        """This model, after `merged` was made from it (LRA-7)."""
        del merged, storage
        return self
