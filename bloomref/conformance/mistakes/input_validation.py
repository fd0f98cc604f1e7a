"""Mistakes in input validation: input that must be refused is accepted."""

from typing import Any

import numpy as np

from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


@mistake(
    "negative-id-wraps",
    "counts a negative token id from the end of the vocabulary",
    "EMB-2",
    first=NO_INTERMEDIATE,
    needs="invalid-input",
)
class NegativeIdWraps(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        ids = np.asarray(token_ids)
        return super().accept(np.where(ids < 0, ids + self.config.vocabulary_size, ids), padding_mask)


@mistake(
    "large-id-clipped",
    "reads a token id beyond the vocabulary as the last one",
    "EMB-2",
    first=NO_INTERMEDIATE,
    needs="invalid-input",
)
class LargeIdClipped(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        return super().accept(np.minimum(np.asarray(token_ids), self.config.vocabulary_size - 1), padding_mask)


@mistake("id-in-32-bits", "truncates token ids to 32 bits", "EMB-2", first=NO_INTERMEDIATE, needs="invalid-input")
class IdIn32Bits(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        ids = np.asarray(token_ids)
        return super().accept(ids.astype(np.int32) if ids.dtype.kind == "i" else ids, padding_mask)


@mistake(
    "float-ids-truncated",
    "truncates token ids that are not integers",
    "EMB-2",
    first=NO_INTERMEDIATE,
    needs="invalid-input",
)
class FloatIdsTruncated(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        return super().accept(np.asarray(token_ids).astype(np.int64), padding_mask)


@mistake(
    "mask-above-one",
    "accepts mask values other than 0 and 1 as real",
    "ATT-11",
    first=NO_INTERMEDIATE,
    needs="invalid-input",
)
class MaskAboveOne(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        return super().accept(token_ids, None if padding_mask is None else np.asarray(padding_mask) != 0)


@mistake(
    "mask-broadcast",
    "broadcasts a mask of another shape to that of the token ids",
    "ATT-11",
    first=NO_INTERMEDIATE,
    needs="invalid-input",
)
class MaskBroadcast(InstrumentedModel):
    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Array, Array]:
        if padding_mask is None:
            return super().accept(token_ids)
        return super().accept(token_ids, np.resize(np.asarray(padding_mask), np.shape(token_ids)))
