"""Mistakes in masks and in softmax."""

import math

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


@mistake("not-causal", "lets queries attend to later keys", "ATT-5", first="attention.probabilities")
class NotCausal(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return np.broadcast_to(np.True_, (len(query), len(key)))


@mistake("strictly-causal", "hides the query's own key", "ATT-5", first="attention.probabilities")
class StrictlyCausal(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return (key < query) | (key + query == 0)


@mistake("causal-plus-one", "lets a query attend to the next key", "ATT-5", first="attention.probabilities")
class CausalPlusOne(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return key <= query + 1


@mistake(
    "window", "lets a query attend to the last 16 keys only", "ATT-5", first="attention.probabilities", needs="long"
)
class Window(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return super().causal(key, query) & (key > query - 16)


@mistake("padding-ignored", "ignores the padding mask", "ATT-7", first="attention.probabilities", needs="padding")
class PaddingIgnored(InstrumentedModel):
    def key_is_real(self, is_real: Array, start: int) -> Array:  # noqa: ARG002
        return np.ones_like(is_real)


@mistake(
    "mask-of-first-row",
    "uses the padding mask of the first row for every row",
    "ATT-7",
    "MOD-9",
    first="attention.probabilities",
    needs="padding rows",
)
class MaskOfFirstRow(InstrumentedModel):
    def key_is_real(self, is_real: Array, start: int) -> Array:  # noqa: ARG002
        return np.broadcast_to(is_real[:1], is_real.shape)


@mistake(
    "mask-inverted",
    "inverts the padding mask: 1 means padding",
    "ATT-7",
    first="attention.probabilities",
    needs="padding",
)
class MaskInverted(InstrumentedModel):
    def key_is_real(self, is_real: Array, start: int) -> Array:  # noqa: ARG002
        return ~is_real if not is_real.all() else is_real


@mistake(
    "mask-multiplied",
    "multiplies the scores by the mask, so a hidden key has score 0",
    "ATT-6",
    first="attention.probabilities",
)
class MaskMultiplied(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, 0.0)


@mistake(
    "mask-added-as-one",
    "adds a boolean mask to the scores, so a visible key has one more",
    "ATT-6",
    first="attention.probabilities",
)
class MaskAddedAsOne(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return scores + visible.astype(scores.dtype)


@mistake(
    "mask-after-softmax",
    "removes hidden keys after the softmax without normalising again",
    "ATT-6",
    first="attention.probabilities",
)
class MaskAfterSoftmax(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return super().softmax(scores, np.ones_like(visible)) * visible


@mistake(
    "mask-100",
    "subtracts 100 from hidden scores instead of hiding them",
    "ATT-6",
    first="attention.probabilities",
    needs="sharp",
)
class Mask100(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, scores - 100.0)


@mistake(
    "mask-10000",
    "subtracts 10000 from hidden scores instead of hiding them",
    "ATT-6",
    first="attention.probabilities",
    needs="sharp",
)
class Mask10000(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, scores - 10000.0)


@mistake(
    "mask-set-to-minus-50",
    "sets hidden scores to -50, which a visible score may be below",
    "ATT-6",
    first="attention.probabilities",
    needs="sharp",
)
class MaskSetToMinus50(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, -50.0)


@mistake(
    "nan-from-padding",
    "divides zero by zero for a query without visible keys, and the NaN spreads through the next layer",
    "ATT-8",
    "NUM-5",
    first="layers.1.attention.context",
    needs="left-pad deep",
)
class NanFromPadding(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return np.where(visible.any(axis=-1, keepdims=True), super().softmax(scores, visible), math.nan)

    def chunk(self, *arguments: object) -> dict[str, Array]:
        with np.errstate(invalid="ignore"):
            return super().chunk(*arguments)  # type: ignore[arg-type]


@mistake("softmax-over-queries", "applies softmax along the query axis", "ATT-6", first="attention.probabilities")
class SoftmaxOverQueries(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return super().softmax(scores.swapaxes(-1, -2), visible.swapaxes(-1, -2)).swapaxes(-1, -2)


@mistake("softmax-plus-one", "adds one to the denominator of softmax", "ATT-6", first="attention.probabilities")
class SoftmaxPlusOne(InstrumentedModel):
    def total(self, powers: Array) -> Array:
        return super().total(powers) + 1.0


@mistake("softmax-twice", "applies softmax twice", "ATT-6", first="attention.probabilities")
class SoftmaxTwice(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return super().softmax(super().softmax(scores, visible), visible)
