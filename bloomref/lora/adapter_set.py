"""The adapters of a backbone: switched, mixed, merged. Clauses: LRA-4 ... LRA-17."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, DTypePolicy, accumulation_dtype, cast
from bloomref.errors import InvalidInput, invalid
from bloomref.lora.adapter import Adapter, Parts
from bloomref.params import LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array
from bloomref.validation import check_real


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """Named adapters on one base model, whose weights are never changed. Every change gives a new set.

    Args:
        config: of the model.
        policy: of the model. Factors are stored in its accumulation dtype, float32 or float64.
        base: the weights without adapters, in any dtype.
        loaded: name -> adapter.
        active: name -> weight of the adapters that take part.
        is_merged: whether the active adapters are added to the weights, rather than to their products.
    """

    config: BloomConfig
    policy: DTypePolicy
    base: Params
    loaded: Mapping[str, Adapter] = field(default_factory=dict)
    active: Mapping[str, float] = field(default_factory=dict)
    is_merged: bool = False

    @property
    def dtype(self) -> DType:
        """The dtype of factors: the accumulation dtype, float32 or float64."""
        return accumulation_dtype(self.policy.compute_dtype)

    # --- changes: each returns a new set -------------------------------------------------------------

    def add(self, name: str, adapter: Adapter) -> "AdapterSet":
        """Return a set with one more adapter, which becomes the only active one."""
        self._check_not_merged()
        return replace(self, loaded={**self.loaded, name: adapter}, active={name: 1.0})

    def delete(self, name: str) -> "AdapterSet":
        """Return a set without the adapter of that name."""
        self._check_not_merged()
        self.get(name)
        loaded = {other: adapter for other, adapter in self.loaded.items() if other != name}
        return replace(self, loaded=loaded, active={other: w for other, w in self.active.items() if other != name})

    def activate(self, adapters: str | Mapping[str, float] | None) -> "AdapterSet":
        """Return a set with other active adapters: one by name, several by name and weight, or none."""
        self._check_not_merged()
        weights = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters or {})
        for name, weight in weights.items():
            self.get(name)
            check_real(f"weight of {name!r}", weight)
        return replace(self, active=weights)

    def merge(self) -> "AdapterSet":
        """Return a set whose active adapters are added to the weights."""
        if not self.active:
            raise InvalidInput("merge_adapter: expected an active adapter, got none; set_adapter makes one active")
        return replace(self, is_merged=True)

    def unmerge(self) -> "AdapterSet":
        """Return a set whose active adapters are separate from the weights."""
        return replace(self, is_merged=False)

    def assign(self, arrays: Mapping[str, Array]) -> "AdapterSet":
        """Return a set with new factors of the active adapters, under the names of `factors`."""
        self._check_not_merged()
        known = self.factors()
        for name, array in arrays.items():
            if name not in known:
                raise invalid("variables", f"names such as {next(iter(known), 'none')}", repr(name))
            if array.shape != known[name].shape:
                raise invalid(name, f"shape {known[name].shape}", str(array.shape))
        changed = {name: _with_factors(self.loaded[name], arrays, self.dtype) for name in self.active}
        return replace(self, loaded={**self.loaded, **changed})

    # --- questions -----------------------------------------------------------------------------------

    def params(self) -> Params:
        """The weights to run on: with the active adapters attached or, if merged, added."""
        params = lora.attach(self.base, self._parts())
        return lora.merged(params, self.policy.variable_dtype) if self.is_merged else params

    def merged(self) -> tuple[BloomConfig, Params]:
        """Config and weights, in the variable dtype, of an equal model without adapters."""
        params = lora.merged(lora.attach(self.base.astype(self.policy.variable_dtype), self._parts()))
        return self.config.replace(tie_word_embeddings=params.lm_head is None), params

    def factors(self) -> dict[str, Array]:
        """Factors of the active adapters by name: `h.0.self_attention.query_key_value.lora_A.default.weight`."""
        return lora.factors(lora.attach(self.base, self._parts()))

    def get(self, name: str) -> Adapter:
        """The adapter of that name.

        Raises:
            InvalidInput: when there is none.
        """
        if name not in self.loaded:
            raise invalid("adapter", f"one of {', '.join(self.loaded) or 'none: there is no adapter'}", repr(name))
        return self.loaded[name]

    def only_active(self) -> Adapter:
        """The active adapter.

        Raises:
            InvalidInput: when none or several are active.
        """
        if len(self.active) != 1:
            raise invalid("name", f"one of {', '.join(self.loaded) or 'none: there is no adapter'}", "None")
        return self.get(next(iter(self.active)))

    def check_new(self, name: str) -> None:
        """Raise InvalidInput for a name that an adapter cannot have, or has already."""
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise invalid("name", "a name without dots and slashes", repr(name))
        if name in self.loaded:
            raise invalid("name", "a name that is not taken", repr(name), "delete_adapter makes room")

    def _check_not_merged(self) -> None:
        if self.is_merged:
            raise InvalidInput(
                "adapters: expected them apart from the weights, got merged ones; unmerge_adapter() first"
            )

    def _parts(self) -> Parts:
        """The active adapters' factors by weight, scaled by the adapters' weights."""
        parts: Parts = {}
        for name, weight in self.active.items():
            for key, factors in self.loaded[name].parts.items():
                parts[key] = parts.get(key, ()) + tuple(replace(part, scale=weight * part.scale) for part in factors)
        return parts


def _with_factors(adapter: Adapter, arrays: Mapping[str, Array], dtype: DType) -> Adapter:
    def changed(key: str, part: LoraFactors) -> LoraFactors:
        a, b = (arrays.get(part.key(key, n), getattr(part, n)) for n in ("a", "b"))
        return replace(part, a=cast(a, dtype).copy(), b=cast(b, dtype).copy())  # the caller may go on changing its own

    return replace(
        adapter, parts={key: tuple(changed(key, part) for part in parts) for key, parts in adapter.parts.items()}
    )
