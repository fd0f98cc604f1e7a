"""The interface between the kit and an implementation of BLOOM. docs/conformance.md shows one in about twenty lines."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bloomref.config import BloomConfig
from bloomref.conformance.cases import MASKS
from bloomref.conformance.lora_cases import FORMS
from bloomref.errors import invalid, represented
from bloomref.shapes import Array, Bool, Float, Int
from bloomref.validation import check_bool, check_integer, did_you_mean

FEATURES = ("post-layernorm", "untied", "mlp-width", "epsilon", "no-layers", "batch")
"""Optional features of a config or an input: post-layernorm residual; untied LM head; an MLP width other than 4 D; an
epsilon other than 1e-5; a model without layers; more than one row."""
OPTIONAL_METHODS = (
    "hidden",
    "trace",
    "in_pieces",
    "trace_in_pieces",
    "loss_and_gradients",
    "call",
    "adapted",
    "merge",
    "unmerge",
    "step",
    "tokens",
    "generate",
)
"""Methods of a `Model` in addition to `logits`."""
QUESTIONS = ("config", "slopes", "choose", "draw", "round", "policy")
"""Questions of the test vectors that need no model: keys of the attribute `answers` of an `Implementation`."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
ROUNDED_TO = ("float32", "model")
"""Dtypes to which a 16-bit model may round what it computes inside a block: float32, or the dtype of the model."""


@dataclass(frozen=True)
class Capabilities:
    """Features that an implementation supports. The kit skips all others and reports why.

    Args:
        dtypes: dtypes in which it computes.
        masks: supported kinds of masks, from `cases.MASKS`; "real" means no padding.
        features: supported optional features, from `FEATURES`.
        scores: dtype to which 16-bit models round attention scores: "float32" or "model" (the model's dtype).
        products: dtype to which 16-bit models round what enters a matrix product: "model" or "float32".
        gradients: dtypes in which `loss_and_gradients` works; None: all of `dtypes`.
        max_time: length of the longest input; None: no limit.
        repeatable: the same call always returns the same bits.
        adapters: LoRA formats that `Model.adapted` reads: "peft" (folders) and "keras" (`.lora.h5` files of KerasHub).

    Raises:
        InvalidInput: for a word that the kit does not know, or a value of the wrong type.
    """

    dtypes: tuple[str, ...] = ("float32",)
    masks: tuple[str, ...] = ("real", "left", "right", "holes", "padding row")
    features: frozenset[str] = frozenset(FEATURES)
    scores: str = "float32"
    max_time: int | None = None
    repeatable: bool = True
    adapters: tuple[str, ...] = ("peft",)
    products: str = "model"
    gradients: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, known in WORDS.items():
            _check_words(f"capabilities: {name}", getattr(self, name), known)
        for name in ("scores", "products"):
            _check_words(f"capabilities: {name}", (getattr(self, name),), ROUNDED_TO)
        if self.max_time is not None:
            check_integer("capabilities: max_time", self.max_time, 1)
        check_bool("capabilities: repeatable", self.repeatable)

    @property
    def trains_in(self) -> tuple[str, ...]:
        """Dtypes in which gradients are asked."""
        return self.dtypes if self.gradients is None else self.gradients


WORDS = {"dtypes": DTYPES, "masks": MASKS, "features": FEATURES, "adapters": FORMS, "gradients": DTYPES}
"""Field of `Capabilities` -> the words that it may contain."""


def _check_words(name: str, words: object, known: Sequence[str]) -> None:
    """Refuse a word that is not known. A single string, a usual mistake, is not a list of words."""
    if words is None and name.endswith("gradients"):
        return
    if isinstance(words, str) or not isinstance(words, Collection):
        raise invalid(name, f"a tuple of {', '.join(known)}", represented(words))
    for word in words:
        if word not in known:
            raise invalid(name, f"some of {', '.join(known)}", represented(word), did_you_mean(str(word), known))


@runtime_checkable
class Model(Protocol):
    """A loaded model. All arrays are NumPy arrays; `is_real` is boolean; results at padded positions are ignored.

    Each optional method adds checks:
        `hidden(token_ids, is_real)`: hidden states after the final norm, (B, T, D).
        `trace(token_ids, is_real)`: mapping of named intermediates (clause MOD-8); any subset.
        `in_pieces(token_ids, is_real, cuts, capacity)`: logits (B, T, V) of calls over one cache, which start at 0 and
            at each cut. The cache has room for `capacity` >= T positions; a cache that grows by itself ignores it.
        `trace_in_pieces(token_ids, is_real, cuts, capacity)`: intermediates of the calls of `in_pieces`, in the shapes
            of one call: keys that a call does not have get 0.
        `loss_and_gradients(token_ids, is_real, labels)`: the loss, and a mapping of gradients by Hugging Face key, in
            Hugging Face's shapes (clauses GRD-1 ... GRD-5); of an adapted model, those of its factors, under the
            names and in the shapes of its file (clause GRD-4). Labels at padding are tokens, too: they must not count.
        `call(token_ids, padding_mask)`: logits from the public API. Arguments have any type that a user may pass;
            `padding_mask` may be None. Must raise (any exception) where the specification refuses (clauses EMB-2,
            ATT-11).
        `adapted(path)`: the model with the LoRA adapter at `path`, a PEFT folder or a `.lora.h5` file, which is deleted
            after the call. May change and return this model: it is not used without the adapter again. Raises
            Unsupported for an adapter that it cannot apply.
        `merge()`, `unmerge()`: of an adapted model: the model whose weights include the adapter, and the model from
            before (clauses LRA-6, LRA-7). May change and return this model.
        `step(token_ids, is_real, start, capacity)`: logits (B, T - start, V) of decoding: the first `start` >= 1
            positions are a prompt, then each position is one step (clause BKD-17).
        `tokens(token_ids, is_real, choice, count)`: (B, count) token ids that continue the prompts; `choice` is a
            `runtime.backend.Choice` (clause BKD-18).
        `generate(prompts, max_length, stop_token_ids)`: the rows of greedy search, as lists of token ids (clause GEN-1;
            the vectors only).
    """

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]: ...


@runtime_checkable
class Implementation(Protocol):
    """An implementation of BLOOM: `--implementation package.module:Name` names a class, or a function that returns an
    instance.

    Optional attributes, by which it can be asked more of the test vectors (specs/98-vectors.md):
        `answers`: question (`QUESTIONS`) -> function from the `input` of a vector to its `output`.
        `load_folder(folder, dtype)`: as `load`, from a model folder of Hugging Face, valid or damaged.
        `error_classes`: True if every refusal has the class that the specification names; else any exception will do.
    """

    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> Model:
        """Load a model.

        Args:
            weights: float32 arrays by Hugging Face key (`transformer.h.0...`), in Hugging Face's shapes.
            dtype: one of `capabilities.dtypes`.

        Raises:
            Unsupported: a requirement is missing; the message says which. The kit skips, or with `--require` fails.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Return names and versions of the packages that compute, for the report."""
        ...


@dataclass(frozen=True)
class Waiver:
    """A known failure. It is an error if a waiver matches nothing, or only questions that pass.

    Args:
        where: fnmatch pattern of `property` or `property/tag`, optionally followed by `@dtype`: `*/left-pad@float64`.
            The names are in `conformance.properties` and `conformance.tags`. `vectors/ID` names a test vector.
        reason: a sentence: the cause of the failure, and who is right.
        link: where it is reported.
    """

    where: str
    reason: str
    link: str = ""


def offers(model: Model, method: str) -> bool:
    """True if the model has the optional method. Models may define methods dynamically, so `isinstance` cannot tell."""
    return hasattr(model, method)


def __getattr__(name: str) -> Any:
    if name == "Adapter":
        warnings.warn(
            "conformance.implementation.Adapter is now called Implementation", DeprecationWarning, stacklevel=2
        )
        return Implementation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
