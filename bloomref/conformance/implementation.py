"""What the kit asks of an implementation. An adapter for one's own function takes some twenty lines: docs/conformance.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bloomref.config import BloomConfig
from bloomref.shapes import Array, Bool, Float, Int

FEATURES = ("post-layernorm", "untied", "mlp-width", "epsilon", "no-layers", "batch")
"""What a config or an input may ask for, and an implementation may lack: the other residual form; a head of its own; an MLP
width other than 4 D; an epsilon other than 1e-5; a model without blocks; more than one row."""


@dataclass(frozen=True)
class Capabilities:
    """What an implementation says that it can do. What it leaves out is skipped with that reason, never guessed.

    Args:
        dtypes: in which it can compute.
        masks: the kinds of `cases.MASKS` that it accepts ("real" is no mask at all).
        features: those of `FEATURES` that it has.
        scores: where the attention scores of its 16-bit types are rounded: "float32" or "model" (the model's dtype).
        max_time: the longest input; None: any.
        repeatable: the same call gives the same bits each time.
        adapters: the forms of LoRA that `adapted` takes: "peft" folders, "keras" files (`.lora.h5`, KerasHub's factors for each head).
    """

    dtypes: tuple[str, ...] = ("float32",)
    masks: tuple[str, ...] = ("real", "left", "right", "holes", "padding row")
    features: frozenset[str] = frozenset(FEATURES)
    scores: str = "float32"
    max_time: int | None = None
    repeatable: bool = True
    adapters: tuple[str, ...] = ("peft",)


@runtime_checkable
class Model(Protocol):
    """One loaded model. Arrays are NumPy's; `is_real` is boolean; results of padded positions are not looked at.

    More methods are more that can be checked, each optional:
        `hidden(token_ids, is_real)`: after the final norm, (B, T, D);
        `trace(token_ids, is_real)`: a mapping of named intermediates (clause MOD-8), as many as it has;
        `in_pieces(token_ids, is_real, cuts, capacity)`: logits (B, T, V) from calls over one cache, each starting at 0 or a cut;
            the cache has room for `capacity` >= T positions (a cache that grows by itself ignores that);
        `loss_and_gradients(token_ids, is_real, labels)`: a number, and gradients by Hugging Face key, in Hugging Face's shapes;
        `call(token_ids, padding_mask)`: logits from the front door that its users call, with whatever they hand in, `None` for
            no mask; it raises (any exception) where the specification refuses (EMB-2, ATT-11);
        `adapted(path)`: this model with the LoRA adapter at `path`, which is gone after the call: a folder of PEFT, or a `.lora.h5` file.
            It may be this very model, changed: nobody asks it without the adapter again. What it cannot adapt is `Unsupported`.
    """

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]: ...


@runtime_checkable
class Adapter(Protocol):
    """An implementation: `--implementation package.module:Adapter` names a class or a function without arguments that makes one."""

    name: str
    capabilities: Capabilities

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> Model:
        """A model of these weights: float32 arrays under Hugging Face's keys (`transformer.h.0...`), in Hugging Face's shapes.

        Raises:
            Unsupported: what is needed is not there, with the reason; it is a skip, or with `--require` a failure.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Names and versions of what computes, for the report."""
        ...


@dataclass(frozen=True)
class Waiver:
    """A known failure: what matches may fail, and it is an error when nothing matches or all that matches passes again.

    Args:
        where: a pattern (fnmatch) of `property` or `property/flag`, either perhaps with `@dtype` behind it:
            `*/left-pad@float64` (properties: `conformance.properties`, flags: `conformance.flags`).
        reason: a sentence: what is wrong, and who is right.
        link: where it is reported, if it is.
    """

    where: str
    reason: str
    link: str = ""
