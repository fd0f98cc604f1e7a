"""The adapters of a backbone: switched, mixed, merged. Clauses: LRA-4 ... LRA-17."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from bloomref.argument_kinds import check_kind, check_mapping
from bloomref.config import BloomConfig
from bloomref.dtypes import DType, DTypePolicy, accumulation_dtype
from bloomref.errors import InvalidInput, Unsupported, describe, invalid, represented
from bloomref.lora.adapted_weights import ChangedWeights, adapted
from bloomref.lora.adapter import Adapter
from bloomref.lora.adapter_variables import gradients, sources, variables, with_variables
from bloomref.machine_memory import check_memory
from bloomref.params import LM_HEAD, Params
from bloomref.reference import lora
from bloomref.reference.resizing import resized
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
        """Return a set with one more adapter, which becomes the only active one.

        A base whose vocabulary is of another size is resized first (LRA-23).
        """
        self._check_not_merged()
        size = adapter.vocabulary_size(self.config.vocabulary_size)
        fitting = self if size == self.config.vocabulary_size else self.resize(size)
        return replace(fitting, loaded={**self.loaded, name: adapter}, active={name: 1.0})

    def resize(self, size: int, *, mean: bool = True, seed: int = 0) -> "AdapterSet":
        """Return a set on a base with another size of the vocabulary.

        Args:
            size: rows of the embedding.
            mean: new rows have the mean of the old ones; else mean zero.

        Raises:
            InvalidInput: an adapter is merged, or has a vocabulary of its own.
        """
        self._check_not_merged()
        for name, adapter in self.loaded.items():
            if adapter.vocabulary_size(0) > 0:
                got = f"the adapter {name!r}, made for {self.config.vocabulary_size}"
                raise invalid("vocabulary", f"adapters that fit {size} tokens", got, f"delete_adapter({name!r}) first")
        numbers = (size - self.config.vocabulary_size) * self.config.hidden_dim
        check_memory("the new rows of the embedding", (8 + self.dtype.itemsize) * numbers)  # drawn in float64
        spread = None if mean else self.config.initializer_range
        base = resized(self.base, size, initializer_range=spread, rng=np.random.default_rng(seed))
        return replace(self, config=self.config.replace(vocabulary_size=size), base=base)

    def delete(self, name: str) -> "AdapterSet":
        """Return a set without the adapter of that name."""
        self._check_not_merged()
        self.get(name)
        loaded = {other: adapter for other, adapter in self.loaded.items() if other != name}
        return replace(self, loaded=loaded, active={other: w for other, w in self.active.items() if other != name})

    def activate(self, adapters: str | Mapping[str, float] | None) -> "AdapterSet":
        """Return a set with other active adapters: one by name, several by name and weight, or none."""
        self._check_not_merged()
        if adapters is not None:
            check_kind("adapter", adapters, (str, Mapping), "a name, a dictionary of name and weight, or None")
        weights = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters or {})
        for name, weight in weights.items():
            self.get(name)
            check_real(f"weight of {name!r}", weight)
        self._check_mix(weights)
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
        """Return a set with new variables of the active adapters, under the names of `factors`."""
        self._check_not_merged()
        check_mapping("variables", arrays)
        known = self.factors()
        for name, array in arrays.items():
            if name not in known:
                raise invalid("variables", f"names such as {next(iter(known), 'none')}", represented(name))
            shape = getattr(array, "shape", None)
            if shape != known[name].shape:
                raise invalid(name, f"shape {known[name].shape}", "no array" if shape is None else str(shape))
        changed = {name: with_variables(name, self.loaded[name], arrays, self.dtype) for name in self.active}
        return replace(self, loaded={**self.loaded, **changed})

    # --- questions -----------------------------------------------------------------------------------

    def params(self) -> Params:
        """The weights to run on: with the active adapters attached or, if merged, added."""
        params = adapted(self.base, self._active(), self.policy.variable_dtype)
        return lora.merged(params, self.policy.variable_dtype) if self.is_merged else params

    def merged(self) -> tuple[BloomConfig, Params]:
        """Config and weights, in the variable dtype, of an equal model without adapters."""
        dtype = self.policy.variable_dtype
        params = lora.merged(adapted(self.base.astype(dtype), self._active(), dtype))
        return self.config.replace(tie_word_embeddings=params.lm_head is None), params

    def factors(self) -> dict[str, Array]:
        """Variables of the active adapters by name: `h.0.self_attention.query_key_value.lora_A.default.weight`."""
        return {key: array for name in self.active for key, array in variables(name, self.loaded[name]).items()}

    @property
    def changes_weights(self) -> bool:
        """True if an active adapter is more than factors of linear layers and of the embedding."""
        return any(self.loaded[name].changes_weights for name in self.active)

    def gradient_sources(self) -> frozenset[str]:
        """Keys of weights and names of factors, by which gradients are needed for those by the variables (LRA-26).

        Raises:
            Unsupported: an active adapter has dropout where its product is part of a weight.
        """
        for name in self.active:
            for key, (part, *_) in self.loaded[name].parts.items():
                if part.dropout and (key in self.loaded[name].magnitudes or key == LM_HEAD.hf_key):
                    expected = "lora_dropout 0 with DoRA or an adapted LM head"
                    raise Unsupported(describe(f"training of {name!r}", expected, repr(part.dropout)))
        return frozenset(key for name in self.active for key in sources(name, self.loaded[name]))

    def gradients(self, of: Mapping[str, Array]) -> dict[str, Array]:
        """Gradients by the variables of the active adapters, from those by the weights and factors in use.

        Args:
            of: for the names of `gradient_sources`.
        """
        changed = ChangedWeights(self.base.astype(self.policy.variable_dtype), self._active())
        mixed = [gradients(name, adapter, weight, changed, of) for name, adapter, weight in self._active()]
        return {key: array for by_name in mixed for key, array in by_name.items()}

    def get(self, name: str) -> Adapter:
        """The adapter of that name.

        Raises:
            InvalidInput: when there is none.
        """
        if not isinstance(name, str) or name not in self.loaded:
            known = ", ".join(self.loaded) or "none: there is no adapter"
            raise invalid("adapter", f"one of {known}", represented(name))
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
            raise invalid("name", "a name without dots and slashes", represented(name))
        if name in self.loaded:
            raise invalid("name", "a name that is not taken", represented(name), "delete_adapter makes room")

    def _check_not_merged(self) -> None:
        if self.is_merged:
            raise InvalidInput(
                "adapters: expected them apart from the weights, got merged ones; unmerge_adapter() first"
            )

    def _check_mix(self, weights: Mapping[str, float]) -> None:
        """Weights that are replaced have no part in a sum: such an adapter is active as a whole (LRA-24)."""
        for name, weight in weights.items():
            replaces = self.loaded[name].replaces
            if replaces and weight != 1:
                hint = f"it replaces {replaces[0]}, which cannot be weighted"
                raise invalid(f"weight of {name!r}", "1.0", represented(weight), hint)
        for one, other in combinations(weights, 2):
            if key := self.loaded[one].overlaps(self.loaded[other]):
                hint = "activate one of them at a time"
                raise invalid("adapters", f"one that replaces {key}", f"{one!r} and {other!r}", hint)

    def _active(self) -> list[tuple[str, Adapter, float]]:
        return [(name, self.loaded[name], weight) for name, weight in self.active.items()]
