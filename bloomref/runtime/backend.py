"""The interface between bloomref and whatever runs its blocks. Types and prose, no logic: specs/95-backend.md is the contract.

Weights are prepared once, into the backend's own layout on its own device; blocks run on opaque values; the wiring between
the blocks exists once, in `runtime.engine`. Position is an argument: nothing remembers where it is (BKD-2).
"""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import Params
from bloomref.shapes import Array, Bool, Float, Int

API_VERSION = 1
"""Grows when a backend of before would no longer be right. What a backend may leave out, such as `SupportsMemoryEstimate`, does not count."""
READ_ROWS = 4096
"""A prompt is read about so many positions at a time, over all rows, where nobody asks for its hidden states."""
GROUP = "bloomref.backends"
"""The entry-point group in which a package names its backends: `name = "package.module:factory"`."""

T = TypeVar("T")
Hidden = Any
"""A backend's own hidden states (B, T, D), on its device; only the backend that made one can read it."""


@dataclass(frozen=True, eq=False)
class Step:
    """Host-side facts of one call, the same for every layer.

    Args:
        start: first cache position that the call writes; ALiBi positions are column indices.
        key_is_real: which of the S = start + T visible columns hold a token.
        is_dense: all of them do: a backend may skip the mask.
        derived: filled by `derive`; nobody else reads it.
    """

    start: int
    key_is_real: Bool[Array, "B S"]
    is_dense: bool
    derived: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, start: int, key_is_real: Bool[Array, "B S"]) -> "Step":
        """The facts of a call that writes from cache position `start` on."""
        return cls(start, key_is_real, bool(np.all(key_is_real)))

    def derive(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed at the first layer that asks and returned again to the others.

        Args:
            key: names the value, and everything but this Step that the value depends on, such as a cache's capacity or a device.
        """
        if key not in self.derived:
            self.derived[key] = make()
        value: T = self.derived[key]
        return value


@runtime_checkable
class Cache(Protocol):
    """Keys and values of `capacity` positions for every layer and row, on the device."""

    def select(self, rows: Int[Array, " N"]) -> "Cache":
        """A copy that holds these rows in this order; one may repeat."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """One model's weights in a backend's layout. Immutable; two caches of one Prepared are independent (BKD-1)."""

    def new_cache(self, batch: int, capacity: int) -> Cache: ...

    def embed(self, token_ids: Int[Array, "B T"]) -> Hidden:
        """Look-up and embedding norm."""
        ...

    def attention_block(self, layer: int, x: Hidden, cache: Any, step: Step) -> Hidden:
        """Layer norm ... residual; `cache` is one that this Prepared made; writes positions [start, start + T) of the layer's cache."""
        ...

    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        """Layer norm ... residual."""
        ...

    def final_norm(self, x: Hidden) -> Hidden: ...

    def logits(self, x: Hidden, last_only: bool) -> Float[Array, "B _ V"]:
        """Scores from the final hidden states, on the host, in the accumulation dtype; of the last position, or of all.

        A new array, as that of `SupportsWholeStep.step`: the caller may write to it.
        """
        ...

    def to_host(self, x: Hidden) -> Float[Array, "B T D"]:
        """In the compute dtype."""
        ...

    def from_host(self, x: Float[Array, "B T D"]) -> Hidden: ...


@dataclass(frozen=True, eq=False)
class Choice:
    """How one token of each row is chosen from its scores without the host.

    Args:
        temperature: divides the scores before a draw; None: the best token, and no draw.
        top_k: draw among the k best, of equal ones those of the lowest ids; None: among all.
        top_p: of these, draw among the fewest best ones whose probabilities reach it.
        forbidden: ids that are never chosen; at least one is not.
        seeds: one for each row (B,); what a row draws depends on its seed and on how many tokens it has drawn.
        drawn: that number.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float = 1.0
    forbidden: Bool[Array, " V"] | None = None
    seeds: Int[Array, " B"] | None = None
    drawn: int = 0


@runtime_checkable
class SupportsWholeStep(Protocol):
    """What a prepared model may have beside the methods of `Prepared`: decoding steps as a whole (BKD-17, BKD-18)."""

    def step(self, token_ids: Int[Array, " B"], cache: Any, step: Step) -> Float[Array, "B V"]:
        """What `embed`, the blocks, `final_norm` and `logits` give for one position of each row."""
        ...

    def tokens(
        self, token_ids: Int[Array, " B"], cache: Any, step: Step, choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        """`count` steps, each with the tokens that the one before chose; the columns behind `step.start` are real.

        Raises:
            Unsupported: a choice that it does not have; BadWeights: a score is NaN or infinite.
        """
        ...


@runtime_checkable
class SupportsDropout(Protocol):
    """Optional capability of a prepared model: a training-mode forward pass."""

    def hidden_with_dropout(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], rng: np.random.Generator
    ) -> Hidden:
        """Final hidden states of whole sequences, with dropout drawn from `rng` in the order of the reference (MOD-7, MOD-12)."""
        ...


@runtime_checkable
class SupportsTrace(Protocol):
    """Optional capability of a prepared model: its intermediates by name."""

    def trace(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], select: Callable[[str], bool]
    ) -> dict[str, Array]:
        """Copies of the intermediates of one forward pass whose MOD-8 name `select` accepts, in the order of computation."""
        ...


@runtime_checkable
class SupportsHostWeights(Protocol):
    """Optional capability of a prepared model: it computes with NumPy arrays, which the engine then need not store twice."""

    @property
    def params(self) -> Params:
        """The weights in the compute dtype, not copied."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Cheap to make; holds no weights and no device memory."""

    name: str
    api_version: int

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:
        """Why this model cannot run here, in one sentence that says what to do; None when it can."""
        ...

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Prepared:
        """Bring the weights, rounded to the compute dtype, into the backend's layout. The caller may drop `params` after."""
        ...


@runtime_checkable
class SupportsAdapters(Protocol):
    """Optional capability of a backend: LoRA products are added where the model runs.

    Any other backend gets weights that the adapters are merged into (LRA-8).
    """

    def prepare_with_adapters(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Prepared:
        """As `prepare`, for weights that carry LoRA factors in `params.adapters` and in `adapters` of its layers."""
        ...


@dataclass(frozen=True)
class Memory:
    """Bytes on a backend's device.

    Args:
        weights: what a prepared model holds.
        cache: keys and values of one cache.
        working: the largest temporaries of one decoding step, logits included.
    """

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working


@runtime_checkable
class SupportsMemoryEstimate(Protocol):
    """What a backend may have beside the methods of `Backend`."""

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        """What it takes to generate `length` positions for `batch` rows, before any of it is allocated (BKD-15)."""
        ...


@runtime_checkable
class SupportsGradients(Protocol):
    """What a backend may have beside the methods of `Backend`: the reverse mode of the whole model (BKD-19)."""

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
        """What `reference.vjp` gives: the mean cross-entropy, and its gradients, adapters' factors included.

        Args:
            params: in any dtype; read where they lie, for they change from step to step.
            targets: the id that each position is to predict, or -100.
            document: positions of one number see each other; negative: padding.
            trainable: the keys whose gradients are wanted.
            rng: for dropout, in the order of the reference's draws; None: nothing is dropped.

        Raises:
            Unsupported: a dtype that it does not train in.
        """
        ...


@runtime_checkable
class SupportsCompilation(Protocol):
    """What a backend may have whose kernels are compiled on the machine where they run, so that a person can be told."""

    def is_compiled(self, policy: DTypePolicy) -> bool:
        """Whether `compile` was done before and its result is kept."""
        ...

    def compile(self, policy: DTypePolicy) -> None:
        """Compile now what a model of this policy needs, rather than at its first token."""
        ...


_RENAMED: dict[str, Any] = {
    "step": Step.at,
    "Decodes": SupportsWholeStep,
    "Trains": SupportsGradients,
    "Compiles": SupportsCompilation,
    "TellsMemory": SupportsMemoryEstimate,
}
"""Names of version 0.1.0 -> what stands for them."""


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(f"{name} is now {new.__qualname__}", DeprecationWarning, stacklevel=2)
    return new
