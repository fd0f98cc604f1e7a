"""Adapters of whole models, and the set of them that a backbone has: switched, mixed, merged. Clauses: LRA-4 ... LRA-17."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.errors import InvalidInput, invalid
from bloomref.formats.keras_lora import kernel_shapes
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.params import LAYER_WEIGHTS, MODEL_WEIGHTS, Params, Weight, layer_key
from bloomref.reference import lora
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone

DENSE_LAYERS = {
    "query_dense": "qkv_weight",
    "key_dense": "qkv_weight",
    "value_dense": "qkv_weight",
    "output_dense": "attn_out_weight",
    "mlp_intermediate_dense": "mlp_up_weight",
    "mlp_output_dense": "mlp_down_weight",
}
"""KerasHub's name of a layer -> attribute of the weight that holds its kernel."""
KERAS_DEFAULT = ("query_dense", "value_dense")
ROWS = {weight.attribute: weight for weight in (*MODEL_WEIGHTS, *LAYER_WEIGHTS)}
Parts = dict[str, tuple[lora.Adapter, ...]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of a whole model.

    Args:
        parts: Hugging Face key of a weight -> what is added to its products.
        config: what PEFT says of it; None for one in KerasHub's form.
    """

    parts: Parts
    config: LoraConfig | None

    def count(self) -> int:
        """Numbers in its factors."""
        return sum(part.a.size + part.b.size for parts in self.parts.values() for part in parts)

    def summary(self) -> dict[str, Any]:
        names = {key.removesuffix(".weight").rpartition(".")[2] for key in self.parts}
        ranks = {rank(part) for parts in self.parts.values() for part in parts}
        return {"modules": sorted(names), "ranks": sorted(ranks), "parameters": self.count()}


def rank(part: lora.Adapter) -> int:
    """R, the narrow axis of its factors."""
    return part.b.shape[0] if isinstance(part, lora.HeadAdapter) else part.b.shape[1]


def from_peft(
    name: str, config: BloomConfig, settings: LoraConfig, pairs: Mapping[str, tuple[Array, Array]], dtype: DType
) -> Adapter:
    """An adapter in PEFT's form from A and B of each weight; `dtype` is the one in which the factors are kept."""
    rows = settings.targets(config)

    def part(key: str, a: Array, b: Array) -> lora.Adapter:
        scale, a, b = settings.scale(key), cast(a, dtype), cast(b, dtype)
        if key.startswith(EMBEDDING):
            return lora.EmbeddingAdapter(name, scale, 0.0, a, b)
        return lora.LinearAdapter(name, scale, settings.lora_dropout, a, b, rows[key].shape(config))

    return Adapter({key: (part(key, a, b),) for key, (a, b) in pairs.items()}, settings)


def from_keras(
    name: str, config: BloomConfig, kernels: Mapping[tuple[int, str], tuple[Array, Array]], dtype: DType
) -> Adapter:
    """An adapter from KerasHub's lora_kernel_a and lora_kernel_b of each dense layer. Its scale, alpha / rank, is 1."""
    parts: Parts = {}
    for (layer, dense), (kernel_a, kernel_b) in kernels.items():
        row = ROWS[DENSE_LAYERS[dense]]
        a, b = cast(kernel_a, dtype), cast(kernel_b, dtype)
        part: lora.Adapter
        if row.attribute == "qkv_weight":
            part = lora.HeadAdapter(name, 1.0, 0.0, a, b, lora.PROJECTIONS.index(dense.removesuffix("_dense")))
        else:
            part = lora.LinearAdapter(name, 1.0, 0.0, a.T.copy(), b.T.copy(), row.shape(config))
        key = layer_key(layer, row)
        parts[key] = (*parts.get(key, ()), part)
    return Adapter(parts, None)


def new_peft(name: str, config: BloomConfig, settings: LoraConfig, seed: int, dtype: DType) -> Adapter:
    """A fresh adapter, initialised as PEFT does: A uniform within 1 / sqrt(N), B zero; of the embedding, A zero, B normal."""
    rng = np.random.default_rng(seed)

    def pair(key: str, weight: Weight) -> tuple[Array, Array]:
        rows, columns = weight.hf_shape(config)
        r = settings.rank(key)
        if key.startswith(EMBEDDING):
            return np.zeros((r, rows), dtype), cast(rng.standard_normal((columns, r)), dtype)
        bound = 1.0 / math.sqrt(columns)
        return cast(rng.uniform(-bound, bound, (r, columns)), dtype), np.zeros((rows, r), dtype)

    pairs = {key: pair(key, weight) for key, weight in settings.targets(config).items()}
    return from_peft(name, config, settings, pairs, dtype)


def new_keras(name: str, config: BloomConfig, r: int, targets: tuple[str, ...], seed: int, dtype: DType) -> Adapter:
    """A fresh adapter, initialised as Keras does: A uniform within sqrt(6 / its inputs), B zero."""
    rng = np.random.default_rng(seed)

    def pair(dense: str) -> tuple[Array, Array]:
        a, b = kernel_shapes(config, dense, r)
        bound = math.sqrt(6.0 / math.prod(a[:-1]))
        return cast(rng.uniform(-bound, bound, a), dtype), np.zeros(b, dtype)

    layers = range(config.num_layers)
    return from_keras(name, config, {(i, dense): pair(dense) for i in layers for dense in targets}, dtype)


# --- the adapters of a backbone ----------------------------------------------------------------------------------


class AdapterSet:
    """Named adapters on one base, which is never changed; a backbone makes its set when it is first asked for."""

    def __init__(self, backbone: "BloomBackbone") -> None:
        self._backbone = backbone
        self._unmerged: Params | None = None
        self._loaded: dict[str, Adapter] = {}
        self._active: dict[str, float] = {}

    @property
    def loaded(self) -> Mapping[str, Adapter]:
        return self._loaded

    @property
    def active(self) -> Mapping[str, float]:
        """Name -> weight."""
        return self._active

    @property
    def is_merged(self) -> bool:
        return self._unmerged is not None

    @property
    def _base(self) -> Params:
        return self._backbone.engine.kept if self._unmerged is None else self._unmerged

    @property
    def config(self) -> BloomConfig:
        return self._backbone.config

    @property
    def dtype(self) -> DType:
        """In which factors are kept: the accumulation dtype, float32 or float64."""
        return accumulation_dtype(self._backbone.policy.compute_dtype)

    def add(self, name: str, adapter: Adapter) -> None:
        """Add an adapter, and make it the active one."""
        self._update(self._loaded | {name: adapter}, {name: 1.0})

    def check_new(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise invalid("name", "a name without dots and slashes", repr(name))
        if name in self._loaded:
            raise invalid("name", "a name that is not taken", repr(name), "delete_adapter makes room")

    def delete(self, name: str) -> None:
        self._get(name)
        loaded = {other: adapter for other, adapter in self._loaded.items() if other != name}
        self._update(loaded, {other: weight for other, weight in self._active.items() if other != name})

    def activate(self, wanted: str | Mapping[str, float] | None) -> None:
        weights = {wanted: 1.0} if isinstance(wanted, str) else dict(wanted or {})
        for name, weight in weights.items():
            self._get(name)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise invalid(f"weight of {name!r}", "a finite number", repr(weight))
        self._update(self._loaded, weights)

    def merge(self, is_merged: bool) -> None:
        if is_merged and not self._active:
            raise InvalidInput("merge_adapter: expected an active adapter, got none; set_adapter makes one active")
        base = self._base
        self._engine(self._loaded, self._active, is_merged)
        self._unmerged = base if is_merged else None

    def assign(self, arrays: Mapping[str, Array]) -> None:
        """New factors of the active adapters, under the names of `factors`."""
        known = self.factors()
        for name, array in arrays.items():
            if name not in known:
                raise invalid("variables", f"names such as {next(iter(known), 'none')}", repr(name))
            if array.shape != known[name].shape:
                raise invalid(name, f"shape {known[name].shape}", str(array.shape))
        changed = {name: _with_factors(self._loaded[name], arrays, self.dtype) for name in self._active}
        self._update(self._loaded | changed, self._active)

    def factors(self) -> dict[str, Array]:
        """Those of the active adapters: `h.0.self_attention.query_key_value.lora_A.default.weight` and so on."""
        return lora.factors(lora.attach(self._base, self._parts(self._loaded, self._active)))

    def trainable_variables(self) -> dict[str, Array]:
        if self._active:
            return {} if self.is_merged else self.factors()
        if self._loaded or not self._backbone.trainable:
            return {}
        return {key: array for key, _, array in self._backbone.params.named()}

    def merged(self) -> tuple[BloomConfig, Params]:
        """A model that answers as the backbone does, without adapters, in the variable dtype."""
        config, dtype = self.config, self._backbone.policy.variable_dtype
        params = lora.merged(lora.attach(self._base.astype(dtype), self._parts(self._loaded, self._active)))
        return config.replace(tie_word_embeddings=params.lm_head is None), params

    def get(self, name: str | None) -> Adapter:
        """By name, or the only one that is active."""
        if name is None and len(self._active) != 1:
            raise invalid("name", f"one of {', '.join(self._loaded) or 'none: there is no adapter'}", "None")
        return self._get(next(iter(self._active)) if name is None else name)

    def _get(self, name: str) -> Adapter:
        if name not in self._loaded:
            raise invalid("adapter", f"one of {', '.join(self._loaded) or 'none: there is no adapter'}", repr(name))
        return self._loaded[name]

    def _update(self, loaded: dict[str, Adapter], active: dict[str, float]) -> None:
        if self.is_merged:
            raise InvalidInput(
                "adapters: expected them apart from the weights, got merged ones; unmerge_adapter() first"
            )
        self._engine(loaded, active, False)
        self._loaded, self._active = loaded, active

    def _engine(self, loaded: Mapping[str, Adapter], active: Mapping[str, float], is_merged: bool) -> None:
        """Give the backbone an engine for these; what fails changes nothing."""
        owner, params = self._backbone, lora.attach(self._base, self._parts(loaded, active))
        if is_merged:
            params = lora.merged(params, owner.policy.variable_dtype)
        owner.engine = Engine(params, owner.config, owner.policy, owner.engine.backend)

    def _parts(self, loaded: Mapping[str, Adapter], active: Mapping[str, float]) -> Parts:
        parts: Parts = {}
        for name, weight in active.items():
            for key, found in loaded[name].parts.items():
                parts[key] = parts.get(key, ()) + tuple(replace(part, scale=weight * part.scale) for part in found)
        return parts


def _with_factors(adapter: Adapter, arrays: Mapping[str, Array], dtype: DType) -> Adapter:
    def changed(key: str, part: lora.Adapter) -> lora.Adapter:
        a, b = (arrays.get(lora.factor_key(key, part, n), getattr(part, n)) for n in ("a", "b"))
        return replace(part, a=cast(a, dtype).copy(), b=cast(b, dtype).copy())  # the caller may go on changing its own

    return replace(adapter, parts={k: tuple(changed(k, part) for part in found) for k, found in adapter.parts.items()})
