"""LoRA (arXiv:2106.09685): a product of two narrow matrices added to what a weight makes of its input. Clauses: LRA-1 ... LRA-9.

An adapter belongs to one weight. It is added, never merged, where the model runs: y + scale B A x, with x under dropout in
training. Its factors keep their own dtype and are widened to that of x. `vjp` is its reverse mode: the gradients by x and by
its factors, for the gradient `dy` of what it returned; `rng` is the generator as it was before the call.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.params import LAYER_WEIGHTS, MODEL_WEIGHTS, LayerParams, Params, layer_key
from bloomref.reference.ops import dropout
from bloomref.shapes import Array, Float, Int

Rng = np.random.Generator | None
Factors = dict[str, Array]
PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class LinearAdapter:
    """Of a whole stored matrix (M, N): y = scale B A x. The rows of B are those of the matrix, interleaved where it is (WGT-3)."""

    name: str
    scale: float
    dropout: float
    a: Float[Array, "R N"]
    b: Float[Array, "M R"]
    shape: tuple[int, ...]
    """Of the weight, axes ungrouped."""

    def key(self, module: str, factor: str) -> str:
        """The name of a factor; `module` is the weight's Hugging Face key without `.weight`."""
        return f"{module}.lora_{factor.upper()}.{self.name}.weight"

    def __call__(self, x: Float[Array, "B T N"], rng: Rng = None) -> Float[Array, "B T M"]:
        return self.scale * (dropout(x, self.dropout, rng) @ _like(x, self.a).T @ _like(x, self.b).T)

    def vjp(
        self, x: Float[Array, "B T N"], dy: Float[Array, "B T M"], rng: Rng = None
    ) -> tuple[Float[Array, "B T N"], Factors]:
        x = dropout(x, self.dropout, deepcopy(rng))
        dy = self.scale * dy
        narrow, dnarrow = x @ _like(x, self.a).T, dy @ _like(dy, self.b)
        gradients = {"a": np.tensordot(dnarrow, x, ((0, 1), (0, 1))), "b": np.tensordot(dy, narrow, ((0, 1), (0, 1)))}
        return dropout(dnarrow @ _like(dy, self.a), self.dropout, rng), gradients

    def delta_weight(self) -> Array:
        """What merging adds to the weight, in its shape."""
        return (self.scale * (self.b @ self.a)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class HeadAdapter:
    """KerasHub's, of the query, the key or the value of every head: y[h] = scale B^T A[:, h]^T x, with B shared by the heads."""

    name: str
    scale: float
    dropout: float
    a: Float[Array, "D H R"]
    b: Float[Array, "R K"]
    projection: int
    """Where the axis C of the fused weight is adapted: 0 query, 1 key, 2 value."""

    def key(self, module: str, factor: str) -> str:
        return f"{module}.{PROJECTIONS[self.projection]}.lora_kernel_{factor}.{self.name}"

    def __call__(self, x: Float[Array, "B T D"], rng: Rng = None) -> Float[Array, "B T M"]:
        narrow = self._narrow(dropout(x, self.dropout, rng))
        y = np.zeros((*narrow.shape[:3], 3, self.b.shape[1]), x.dtype)
        y[:, :, :, self.projection] = self.scale * (narrow @ _like(x, self.b))
        return y.reshape(*x.shape[:2], -1)

    def vjp(
        self, x: Float[Array, "B T D"], dy: Float[Array, "B T M"], rng: Rng = None
    ) -> tuple[Float[Array, "B T D"], Factors]:
        x = dropout(x, self.dropout, deepcopy(rng))
        per_head = dy.reshape(*dy.shape[:2], self.a.shape[1], 3, self.b.shape[1])
        dy = self.scale * per_head[:, :, :, self.projection]
        dnarrow = dy @ _like(dy, self.b).T
        db = np.tensordot(self._narrow(x), dy, ((0, 1, 2), (0, 1, 2)))
        dx = np.tensordot(dnarrow, _like(dy, self.a), ((2, 3), (1, 2)))
        return dropout(dx, self.dropout, rng), {"a": np.tensordot(x, dnarrow, ((0, 1), (0, 1))), "b": db}

    def _narrow(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H R"]:
        width, heads, r = self.a.shape
        return (x @ _like(x, self.a).reshape(width, heads * r)).reshape(*x.shape[:2], heads, r)

    def delta_weight(self) -> Float[Array, "H C K D"]:
        """What merging adds to the fused weight."""
        width, heads, _ = self.a.shape
        delta = np.zeros((heads, 3, self.b.shape[1], width), self.a.dtype)
        delta[:, self.projection] = self.scale * np.einsum("DHR,RK->HKD", self.a, self.b)
        return delta


@dataclass(frozen=True, eq=False)
class EmbeddingAdapter:
    """Of the embedding, in the look-up alone: a tied head keeps the matrix without it, as in PEFT. No dropout, likewise."""

    name: str
    scale: float
    dropout: float
    a: Float[Array, "R V"]
    b: Float[Array, "D R"]

    def key(self, module: str, factor: str) -> str:
        return f"{module}.lora_embedding_{factor.upper()}.{self.name}"

    def __call__(self, token_ids: Int[Array, "B T"], rng: Rng = None) -> Float[Array, "B T D"]:  # noqa: ARG002
        return self.scale * (self.a.T[token_ids] @ self.b.T)

    def vjp(self, token_ids: Int[Array, "B T"], dy: Float[Array, "B T D"], rng: Rng = None) -> tuple[None, Factors]:  # noqa: ARG002
        """Token ids have no gradient."""
        dy = self.scale * dy
        da = np.zeros(self.a.T.shape, dy.dtype)
        np.add.at(da, token_ids, dy @ _like(dy, self.b))
        return None, {"a": da.T, "b": np.tensordot(dy, _like(dy, self.a.T[token_ids]), ((0, 1), (0, 1)))}

    def delta_weight(self) -> Float[Array, "V D"]:
        """What merging adds to the matrix of the look-up."""
        return self.scale * (self.b @ self.a).T


Adapter = LinearAdapter | HeadAdapter | EmbeddingAdapter


def _like(x: Array, factor: Array) -> Array:
    return factor.astype(x.dtype, copy=False)


def adapt(y: Array, owner: LayerParams | Params, attribute: str, x: Array, rng: Rng = None) -> Array:
    """y, which is overwritten, plus what every adapter of the weight makes of x; y as it is without any (LRA-2)."""
    for adapter in owner.adapters.get(attribute, ()):
        y += adapter(x, rng)
    return y


# --- adapters of a whole model -----------------------------------------------------------------------------------


def attach(params: Params, adapters: Mapping[str, tuple[Adapter, ...]]) -> Params:
    """The same weights with these adapters, by the Hugging Face key of their weight, and no others."""

    def adapted(keys: Mapping[str, str]) -> dict[str, tuple[Adapter, ...]]:
        return {attribute: adapters[key] for attribute, key in keys.items() if adapters.get(key)}

    layers = tuple(replace(p, adapters=adapted(_layer_keys(i))) for i, p in enumerate(params.layers))
    return replace(params, layers=layers, adapters=adapted(_MODEL_KEYS))


def attached(params: Params) -> Iterator[tuple[str, Adapter]]:
    """(Hugging Face key of the weight, adapter), in the order of the forward pass."""
    yield from ((_MODEL_KEYS[name], adapter) for name, found in params.adapters.items() for adapter in found)
    for i, layer in enumerate(params.layers):
        for attribute, key in _layer_keys(i).items():
            yield from ((key, adapter) for adapter in layer.adapters.get(attribute, ()))


def is_adapted(params: Params) -> bool:
    """Whether any weight has an adapter."""
    return next(attached(params), None) is not None


def factors(params: Params) -> dict[str, Array]:
    """Every factor under its name: `h.0.self_attention.query_key_value.lora_A.default.weight`."""
    named = attached(params)
    return {factor_key(key, adapter, n): getattr(adapter, n) for key, adapter in named for n in ("a", "b")}


def with_factors(params: Params, arrays: Mapping[str, Array]) -> Params:
    """The same weights and adapters, with new factors under the names that `factors` gives them."""
    changed: dict[str, tuple[Adapter, ...]] = {}
    for key, adapter in attached(params):
        a, b = (arrays.get(factor_key(key, adapter, n), getattr(adapter, n)) for n in ("a", "b"))
        changed[key] = (*changed.get(key, ()), replace(adapter, a=a, b=b))
    return attach(params, changed)


def factor_key(weight_key: str, adapter: Adapter, factor: str) -> str:
    """The name of factor "a" or "b" of an adapter of the weight with this Hugging Face key."""
    return adapter.key(weight_key.removesuffix(".weight"), factor)


def merged(params: Params, dtype: DType | None = None) -> Params:
    """Weights without adapters that do what these do with theirs: W + the sum of scale B A, rounded once. Clause: LRA-6.

    An adapted embedding is for the look-up alone, so a head that was tied to it becomes a matrix of its own. With a dtype
    the weights are first rounded to it, those that are adapted; the others stay as they are, and shared.
    """
    wanted = dtype or params.word_embedding.dtype
    head = params.word_embedding if params.lm_head is None and params.adapters else params.lm_head
    layers = tuple(replace(p, adapters={}, **_merged(p, wanted)) for p in params.layers)
    return replace(params, layers=layers, lm_head=head, source=None, adapters={}, **_merged(params, wanted))


def _merged(owner: LayerParams | Params, dtype: DType) -> dict[str, Any]:
    return {name: _sum(cast(getattr(owner, name), dtype), found) for name, found in owner.adapters.items()}


def _sum(weight: Array, adapters: tuple[Adapter, ...]) -> Array:
    total = weight.astype(accumulation_dtype(weight.dtype))
    for adapter in adapters:
        total += adapter.delta_weight()
    return cast(total, weight.dtype)


_MODEL_KEYS = {weight.attribute: weight.hf_key for weight in MODEL_WEIGHTS}


def _layer_keys(index: int) -> dict[str, str]:
    return {weight.attribute: layer_key(index, weight) for weight in LAYER_WEIGHTS}
