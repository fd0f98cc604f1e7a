"""Mistakes of merging an adapter into the weights, and of taking it out again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.dtypes import DType
from bloomref.lora.adapter import Parts
from bloomref.params import LoraFactors, Params
from bloomref.reference import lora


def changed(parts: Parts, change: Callable[[LoraFactors], LoraFactors]) -> Parts:
    return {key: tuple(change(factors) for factors in pairs) for key, pairs in parts.items()}


class OtherFactors(InstrumentedModel):
    """Merges other factors than those that it runs with."""

    def other(self, factors: LoraFactors) -> LoraFactors:
        raise NotImplementedError

    def merged_weights(self, storage: DType) -> Params:
        assert self.adapter is not None
        return lora.merged(lora.attach(self.params, changed(self.parts(self.adapter), self.other)), storage)


@mistake(
    "merge-added-twice", "adds the adapter twice when it merges", "LRA-6", first=NO_INTERMEDIATE, needs="lora merge"
)
class MergeAddedTwice(OtherFactors):
    def other(self, factors: LoraFactors) -> LoraFactors:
        return replace(factors, scale=2.0 * factors.scale)


@mistake("merge-unscaled", "merges B A without its scale", "LRA-6", first=NO_INTERMEDIATE, needs="lora merge")
class MergeUnscaled(OtherFactors):
    def other(self, factors: LoraFactors) -> LoraFactors:
        return replace(factors, scale=1.0)


@mistake(
    "merge-into-the-head",
    "merges an adapter of the embedding into the tied head, too",
    "LRA-6",
    "LRA-4",
    first=NO_INTERMEDIATE,
    needs="lora lora-embedding merge",
)
class MergeIntoTheHead(InstrumentedModel):
    def merged_weights(self, storage: DType) -> Params:
        return replace(super().merged_weights(storage), lm_head=self.params.lm_head)


@mistake(
    "unmerge-by-subtraction",
    "subtracts the adapter from the merged weights to unmerge it",
    "LRA-7",
    first=NO_INTERMEDIATE,
    needs="lora merge",
)
class UnmergeBySubtraction(InstrumentedModel):
    def unmerged(self, merged: Self, storage: DType) -> Self:
        assert self.adapter is not None
        negative = changed(self.parts(self.adapter), lambda factors: replace(factors, scale=-factors.scale))
        params = lora.merged(lora.attach(merged.params, negative), storage)
        params = replace(params, lm_head=self.params.lm_head)
        return type(self)(self.config, params, self.arithmetic, self.dtype, self.adapter)
