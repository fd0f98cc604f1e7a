"""Mistakes in the gradients of LoRA factors; the loss is right."""

import numpy as np

from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LoraFactors
from bloomref.shapes import Array

# --- LoRA ------------------------------------------------------------------------------------------------------------


class Factors(InstrumentedModel):
    """The gradients of the factors, changed."""

    def factors_vjp(self, part: LoraFactors, x: Array, dy: Array) -> tuple[Array, Array]:
        return self.changed(part, *super().factors_vjp(part, x, dy))

    def changed(self, part: LoraFactors, da: Array, db: Array) -> tuple[Array, Array]:
        raise NotImplementedError


@mistake(
    "lora-gradient-unscaled",
    "forgets the scale of the adapter in the gradients of its factors",
    "GRD-3",
    "LRA-1",
    first=NO_INTERMEDIATE,
    needs="gradients lora",
)
class LoraGradientUnscaled(Factors):
    def changed(self, part: LoraFactors, da: Array, db: Array) -> tuple[Array, Array]:
        return da / part.scale, db / part.scale


@mistake(
    "lora-gradient-of-b-scaled-twice",
    "scales the gradient of B twice",
    "GRD-3",
    "LRA-1",
    first=NO_INTERMEDIATE,
    needs="gradients lora",
)
class LoraGradientOfBScaledTwice(Factors):
    def changed(self, part: LoraFactors, da: Array, db: Array) -> tuple[Array, Array]:
        return da, db * part.scale


@mistake(
    "lora-gradient-of-a-lost",
    "returns zero for the gradient of A",
    "GRD-3",
    "LRA-15",
    first=NO_INTERMEDIATE,
    needs="gradients lora",
)
class LoraGradientOfALost(Factors):
    def changed(self, part: LoraFactors, da: Array, db: Array) -> tuple[Array, Array]:  # noqa: ARG002
        return 0.0 * da, db


@mistake(
    "lora-gradient-past-factors",
    "omits the adapter from the gradient that reaches earlier layers",
    "GRD-3",
    "LRA-1",
    first=NO_INTERMEDIATE,
    needs="gradients lora",
)
class LoraGradientPastFactors(InstrumentedModel):
    def low_rank_vjp(self, part: LoraFactors, dy: Array) -> Array:
        return 0.0 * super().low_rank_vjp(part, dy)


@mistake(
    "lora-gradient-dropped-out",
    "drops inputs of the adapter in the backward pass without a random generator",
    "LRA-9",
    first=NO_INTERMEDIATE,
    needs="gradients lora",
)
class LoraGradientDroppedOut(InstrumentedModel):
    def factors_vjp(self, part: LoraFactors, x: Array, dy: Array) -> tuple[Array, Array]:
        if part.dropout:
            remaining = np.random.default_rng(0).random(x.shape) >= part.dropout
            x = (x * remaining / (1.0 - part.dropout)).astype(x.dtype)
        return super().factors_vjp(part, x, dy)


@mistake(
    "lora-gradient-of-one-head",
    "computes the gradient of KerasHub's B from the first head only",
    "GRD-3",
    "LRA-11",
    first=NO_INTERMEDIATE,
    needs="gradients lora lora-heads heads",
)
class LoraGradientOfOneHead(InstrumentedModel):
    def factors_vjp(self, part: LoraFactors, x: Array, dy: Array) -> tuple[Array, Array]:
        da, db = super().factors_vjp(part, x, dy)
        if part.kind == "heads":
            narrow, of_part = self.narrow(part, x), self.of_part(part, dy)
            db = self.outer(narrow[:, :, 0], of_part[:, :, 0])
        return da, db
