"""The adapters of a backbone: switched, mixed, merged. Clauses: LRA-4 ... LRA-17."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.errors import InvalidInput, invalid
from bloomref.params import Params
from bloomref.reference import lora
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone
from bloomref.lora.adapter import Adapter, Parts


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
