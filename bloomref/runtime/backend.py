"""The interface between bloomref and a backend, which computes its blocks. specs/95-backend.md has the rules.

A backend prepares the weights once, in its own layout on its own device. Hidden states are opaque to bloomref.
`runtime.engine` connects the blocks. Position is an argument: a backend stores none (BKD-2).
"""

import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import Params
from bloomref.shapes import Array, Bool, Float, Int

API_VERSION = 1
"""Incremented on incompatible changes. Optional capabilities do not count."""
READ_ROWS = 4096
"""Positions of a prompt that are computed at a time, over all rows, when only the scores after its end are needed."""
VOCABULARY_BLOCK = 512
"""Ids of one block of the vocabulary, over which `SupportsVocabularySums` sums; the last block may be shorter."""
GROUP = "bloomref.backends"
"""The entry-point group of backends: `name = "package.module:factory"`."""

T = TypeVar("T")
Hidden = Any
"""Hidden states (B, T, D) in a backend's own form, on its device. Only that backend reads them."""


@dataclass(frozen=True, eq=False)
class Step:
    """Position and mask of one call, on the host. All layers of a call share one Step.

    Args:
        start: first cache position that the call writes. ALiBi positions are column indices.
        key_is_real: (B, S) of bool, S = start + T: True for a token, False for padding.
        is_dense: True if every element of `key_is_real` is: the mask can be skipped.
        derived: storage of `derive`.
    """

    start: int
    key_is_real: Bool[Array, "B S"]
    is_dense: bool
    derived: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, start: int, key_is_real: Bool[Array, "B S"]) -> "Step":
        """The Step of a call that writes from cache position `start` on."""
        return cls(start, key_is_real, bool(np.all(key_is_real)))

    def derive(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return `make()`, computed once for all layers.

        Args:
            key: identifies the value and everything it depends on besides this Step,
                such as a cache's capacity or a device.
        """
        if key not in self.derived:
            self.derived[key] = make()
        value: T = self.derived[key]
        return value


@runtime_checkable
class Cache(Protocol):
    """Keys and values of every layer and row, for `capacity` positions, on the device."""

    def select(self, rows: Int[Array, " N"]) -> "Cache":
        """A copy with these rows in this order. A row may be repeated."""
        ...


@runtime_checkable
class SupportsRearranging(Protocol):
    """Optional capability of a cache: its rows change places in its own memory (BKD-27)."""

    def rearranged(self, rows: Int[Array, " N"], start: int, stop: int) -> Cache:
        """A cache of N rows in the memory of this one, which is not used any more. Row i becomes the former rows[i].

        Args:
            rows: at most as many as the cache has. A row may be repeated.
            start: the two rows hold the same before this position; they need not be copied there.
            stop: nothing is written from this position on.
        """
        ...


@runtime_checkable
class Prepared(Protocol):
    """The weights of one model in a backend's layout. Immutable. Two caches of one Prepared are independent (BKD-1)."""

    def new_cache(self, batch: int, capacity: int) -> Cache: ...

    def embed(self, token_ids: Int[Array, "B T"]) -> Hidden:
        """Embedding lookup and embedding LayerNorm."""
        ...

    def attention_block(self, layer: int, x: Hidden, cache: Any, step: Step) -> Hidden:
        """LayerNorm, attention, residual sum.

        Writes positions [start, start + T) of the layer's cache, which this Prepared created.
        """
        ...

    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        """LayerNorm, MLP, residual sum."""
        ...

    def final_norm(self, x: Hidden) -> Hidden: ...

    def logits(self, x: Hidden, last_only: bool) -> Float[Array, "B _ V"]:
        """Logits from final hidden states, on the host, in the accumulation dtype: of the last position, or of all.

        A new array, as that of `SupportsStep.step`: the caller may write to it.
        """
        ...

    def to_host(self, x: Hidden) -> Float[Array, "B T D"]:
        """The hidden states as a NumPy array in the compute dtype."""
        ...

    def from_host(self, x: Float[Array, "B T D"]) -> Hidden:
        """The inverse of `to_host`."""
        ...


@dataclass(frozen=True, eq=False)
class Choice:
    """Rule by which a backend chooses one token of each row from its scores.

    Args:
        temperature: divides the scores before a draw. None: the token with the highest score, without a draw.
        top_k: draw among the k highest scores; ties go to the lowest ids. None: among all.
        top_p: draw among the fewest highest scores whose probabilities add up to this value, in (0, 1].
        forbidden: (V,) of bool, True for ids that are never chosen. At least one is False.
        seeds: (B,) of uint64. The draw of a row depends on its seed and on `drawn` alone (GEN-9). None: all are 0.
        drawn: number of tokens that each row has drawn before, in [0, 2^31).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float = 1.0
    forbidden: Bool[Array, " V"] | None = None
    seeds: Int[Array, " B"] | None = None
    drawn: int = 0


@runtime_checkable
class SupportsStep(Protocol):
    """Optional capability of a prepared model: a whole decoding step (BKD-17)."""

    def step(self, token_ids: Int[Array, " B"], cache: Any, step: Step) -> Float[Array, "B V"]:
        """Logits (B, V) after one position of each row: `embed`, the blocks, `final_norm` and `logits` at once."""
        ...


@runtime_checkable
class SupportsTokens(Protocol):
    """Optional capability of a prepared model: it chooses tokens by itself (BKD-18)."""

    def tokens(
        self, token_ids: Int[Array, " B"], cache: Any, step: Step, choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        """Run `count` steps, each on the tokens chosen by the step before. Positions after `step.start` are real.

        Raises:
            Unsupported: for a choice that it does not implement; BadWeights: for a score that is NaN or infinite.
        """
        ...


@runtime_checkable
class SupportsWholeStep(SupportsStep, SupportsTokens, Protocol):
    """Both capabilities of a decoding step in one, as in version 0.1.0. Either of them may be alone."""


@runtime_checkable
class SupportsVocabularySums(Protocol):
    """Optional capability of a prepared model: sums over a row of the vocabulary, for draws on the host (BKD-26)."""

    def exponential_sums(self, row: Float[Array, " V"], temperature: float) -> Float[Array, " N"]:
        """exp((s - largest s) / temperature), summed over each block of VOCABULARY_BLOCK ids.

        Args:
            row: in the accumulation dtype, on the host; at least one entry is above -inf.
            temperature: above 0.

        Returns:
            float64, with relative errors below 1e-12.
        """
        ...


@runtime_checkable
class SupportsCacheCopy(Protocol):
    """Optional capability of a prepared model: keys and values as arrays on the host, in the compute dtype (BKD-25)."""

    def copy_from_cache(
        self, cache: Any, row: int, stop: int
    ) -> tuple[Float[Array, "L H S K"], Float[Array, "L H S K"]]:
        """Keys and values of the positions [0, stop) of a row."""
        ...

    def copy_to_cache(
        self, cache: Any, row: int, start: int, keys: Float[Array, "L H S K"], values: Float[Array, "L H S K"]
    ) -> None:
        """Write the keys and values of the positions [start, start + S) of a row."""
        ...


@runtime_checkable
class SupportsDropout(Protocol):
    """Optional capability of a prepared model: a training-mode forward pass."""

    def hidden_with_dropout(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], rng: np.random.Generator
    ) -> Hidden:
        """Final hidden states of whole sequences,
        with dropout drawn from `rng` in the order of the reference (MOD-7, MOD-12).
        """
        ...


@runtime_checkable
class SupportsTrace(Protocol):
    """Optional capability of a prepared model: its intermediates by name."""

    def trace(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], select: Callable[[str], bool]
    ) -> dict[str, Array]:
        """Copies of the intermediates of one forward pass whose MOD-8 name `select`
        accepts, in the order of computation.
        """
        ...


@runtime_checkable
class SupportsRecording(Protocol):
    """Optional capability of a prepared model: the intermediates of its own calls, also of calls over a cache."""

    def record(self, select: Callable[[str], bool]) -> AbstractContextManager[dict[str, Array]]:
        """Return a dictionary that fills, inside the context, with copies of the intermediates that the methods of
        this model compute and whose MOD-8 name `select` accepts. A later call replaces those of an earlier one.
        """
        ...


@runtime_checkable
class SupportsHostWeights(Protocol):
    """Optional capability of a prepared model:
    it computes with NumPy arrays, which the engine then need not store twice.
    """

    @property
    def params(self) -> Params:
        """The weights in the compute dtype, not copied."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A way to run models. Cheap to create: it holds neither weights nor device memory."""

    name: str
    api_version: int

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:
        """None if the model can run on this machine; else one sentence with the reason and the remedy."""
        ...

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Prepared:
        """Copy the weights, rounded to the compute dtype, into the backend's layout.

        The caller may then release `params`.
        """
        ...


@runtime_checkable
class SupportsAdapters(Protocol):
    """Optional capability of a backend: LoRA products are added where the model runs.

    Any other backend gets weights that the adapters are merged into (LRA-8).
    """

    def prepare_with_adapters(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Prepared:
        """Prepare weights with LoRA factors, which are in `params.adapters` and in `adapters` of its layers."""
        ...


@dataclass(frozen=True)
class Declaration:
    """Facts about a backend that calls cannot show. The conformance kit tests the backend by them (BKD-22).

    Args:
        dtypes: compute dtypes.
        gradients: dtypes in which `loss_and_gradients` works; None: in all of `dtypes`.
        scores: dtype to which a 16-bit model rounds attention scores: "float32", or "model" for its own dtype.
        products: dtype to which a 16-bit model rounds what enters a matrix product inside a block: "model" or
            "float32". With "float32" a block rounds its result, its keys and its values only, as in NUM-2.
        bit_equal: dtypes in which the bits of a position depend only on the positions before it: not on chunks, on
            other rows or on the cache's capacity.
        repeatable: a repeated call returns the same bits.
        packages: distributions that compute; a report states their versions.
    """

    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    gradients: tuple[str, ...] | None = None
    scores: str = "float32"
    products: str = "model"
    bit_equal: tuple[str, ...] = ()
    repeatable: bool = True
    packages: tuple[str, ...] = ()


@runtime_checkable
class SupportsDeclaration(Protocol):
    """Optional capability of a backend: it declares facts that calls cannot show (BKD-22)."""

    @property
    def declaration(self) -> Declaration: ...


@dataclass(frozen=True)
class Memory:
    """Bytes on a backend's device.

    Args:
        weights: of a prepared model.
        cache: keys and values of one cache.
        working: largest temporaries of one decoding step, logits included.
    """

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working


@runtime_checkable
class SupportsMemoryEstimate(Protocol):
    """Optional capability of a backend: an estimate of memory (BKD-15)."""

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        """Bytes needed to generate `length` positions for `batch` rows. Nothing is allocated."""
        ...


@runtime_checkable
class SupportsGradients(Protocol):
    """Optional capability of a backend: the backward pass of the whole model (BKD-19)."""

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
        """The mean cross-entropy in nats and its gradients by key, those of LoRA factors included.

        Args:
            params: weights in any dtype, with LoRA factors or without.
                They change between calls: nothing of them is cached.
            targets: (B, T) id that each position predicts, or -100 to ignore the position.
            document: (B, T) positions attend to positions of the same number; negative: padding.
            trainable: accepts the keys whose gradients are computed.
            rng: of dropout, drawn in the order of the reference; None: no dropout.

        Raises:
            Unsupported: for a dtype that it does not train in.
        """
        ...


@runtime_checkable
class SupportsCompilation(Protocol):
    """Optional capability of a backend whose kernels are compiled on the user's
    machine: the command line reports it.
    """

    def is_compiled(self, policy: DTypePolicy) -> bool:
        """True if the kernels of this policy are compiled and cached."""
        ...

    def compile(self, policy: DTypePolicy) -> None:
        """Compile the kernels of this policy now, rather than at the first token."""
        ...


_RENAMED: dict[str, Any] = {
    "step": Step.at,
    "Decodes": SupportsWholeStep,
    "Trains": SupportsGradients,
    "Compiles": SupportsCompilation,
    "TellsMemory": SupportsMemoryEstimate,
}
"""Name of version 0.1.0 -> its replacement."""


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(f"{name} is now {new.__qualname__}", DeprecationWarning, stacklevel=2)
    return new
