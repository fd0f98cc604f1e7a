"""A backend under test: its prepared models. Its exceptions are answers, not errors of the kit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Subject, converted
from bloomref.dtypes import DType, DTypePolicy, accumulation_dtype
from bloomref.params import Params
from bloomref.runtime.backend import Declaration, Hidden, Step
from bloomref.shapes import Array, Bool, Int


class Guarded:
    """A backend's object. An exception of a method is converted to `Raised`."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        with converted():
            value = getattr(self.target, name)
        return _guarded(value) if callable(value) else value


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with converted():
            return method(*arguments)

    return call


@dataclass(frozen=True, eq=False)
class Tested:
    """One model on the backend, and its policy.

    Args:
        backend: the backend; an exception of a method is `Raised`.
        prepared: the prepared model, likewise.
        declared: what the backend declares.
    """

    case: Case
    backend: Any
    prepared: Any
    policy: DTypePolicy
    declared: Declaration

    @classmethod
    def of(cls, subject: Subject, case: Case) -> "Tested":
        """Load the model of a case.

        Raises:
            Raised: the backend raised while it prepared the model.
            Unsupported: the backend cannot run it.
        """
        with converted():
            model: Any = subject.model(case)
        return cls(case, Guarded(model.backend), Guarded(model.prepared), model.policy, declared(subject))

    @property
    def compute(self) -> DType:
        return self.policy.compute_dtype

    @property
    def wide(self) -> DType:
        return accumulation_dtype(self.compute)

    def prepare(self, params: Params, policy: DTypePolicy | None = None) -> "Tested":
        """The same config with other weights."""
        chosen = policy or self.policy
        prepared = self.backend.prepare(params, self.case.config, chosen)
        return Tested(self.case, self.backend, Guarded(prepared), chosen, self.declared)

    def new_cache(self, batch: int, capacity: int) -> Any:
        return Guarded(self.prepared.new_cache(batch, capacity))

    def select(self, cache: Guarded, rows: Int[Array, " N"]) -> Guarded:
        return Guarded(cache.select(rows))

    def attention_block(self, layer: int, x: Hidden, cache: Guarded, step: Step) -> Hidden:
        return self.prepared.attention_block(layer, x, cache.target, step)

    def extend(self, cache: Guarded, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B S"]) -> Hidden:
        """Final hidden states of the positions from `start` on; `is_real` covers those before them, too."""
        step, x = Step.at(start, is_real), self.prepared.embed(token_ids)
        for layer in range(self.case.config.num_layers):
            x = self.prepared.mlp_block(layer, self.attention_block(layer, x, cache, step))
        return self.prepared.final_norm(x)

    def whole(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], spare: int = 0) -> Hidden:
        """Final hidden states of whole sequences, in one call over a cache with `spare` more positions."""
        cache = self.new_cache(len(token_ids), token_ids.shape[1] + spare)
        return self.extend(cache, 0, token_ids, is_real)

    def logits(self, hidden: Hidden, last_only: bool = False) -> Array:
        return np.asarray(self.prepared.logits(hidden, last_only))

    def bits(self, hidden: Hidden) -> bytes:
        return np.asarray(self.prepared.to_host(hidden)).tobytes()


def declared(subject: Subject) -> Declaration:
    """The declaration of an implementation that is a backend."""
    implementation: Any = subject.implementation
    declaration: Declaration = implementation.declaration
    return declaration


def is_backend(implementation: object) -> bool:
    """True for a backend of bloomref: it has the properties of this room."""
    return isinstance(getattr(implementation, "declaration", None), Declaration)


def condition(name: str, holds: bool, otherwise: str) -> Judgement:
    """Judgement of a condition on a tensor or a call; `otherwise` explains the failure."""
    return Judgement(name, "pass" if holds else "fail", 0.0 if holds else np.inf, (0, 0), "" if holds else otherwise)


def protocol(value: Guarded, kind: type) -> bool:
    """True if the object has an optional capability."""
    return isinstance(value.target, kind)
