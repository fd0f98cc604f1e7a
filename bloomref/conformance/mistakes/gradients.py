"""Mistakes in the loss and in the backward pass; the forward pass is right."""

import math

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import GELU_CONSTANT, InstrumentedModel
from bloomref.params import LayerParams, LoraFactors
from bloomref.shapes import Array

# --- the loss --------------------------------------------------------------------------------------------------------


@mistake(
    "loss-over-all-positions",
    "divides the loss by the number of positions instead of that of counted tokens",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossOverAllPositions(InstrumentedModel):
    def counted(self, targets: Array) -> int:
        return targets.size // self.samples


@mistake(
    "loss-summed",
    "sums the loss over the tokens instead of averaging",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossSummed(InstrumentedModel):
    def counted(self, targets: Array) -> int:  # noqa: ARG002
        return 1


@mistake(
    "loss-mean-of-rows",
    "averages the loss of each row, and then over the rows",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients rows",
)
class LossMeanOfRows(InstrumentedModel):
    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        rows = [row for row in range(len(targets)) if (targets[row] != IGNORED_LABEL).any()]
        dlogits, losses = np.zeros_like(logits), []
        for row in rows:
            value, dlogits[row] = super().cross_entropy(logits[row][None], targets[row][None])
            losses.append(value)
        return np.sum(losses, axis=0) / max(1, len(rows)), dlogits / max(1, len(rows))


@mistake(
    "loss-gradient-of-sum",
    "averages the loss but not its gradient",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossGradientOfSum(InstrumentedModel):
    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        value, dlogits = super().cross_entropy(logits, targets)
        return value, dlogits * self.counted(targets)


class Targets(InstrumentedModel):
    """Other tokens are predicted."""

    def targets(self, token_ids: Array, is_real: Array, labels: Array) -> Array:  # noqa: ARG002
        targets = np.full(labels.shape, IGNORED_LABEL)
        targets[:, :-1] = self.predicted(is_real, labels)
        return targets

    def predicted(self, is_real: Array, labels: Array) -> Array:
        """The targets of all columns but the last."""
        raise NotImplementedError


@mistake(
    "labels-not-shifted",
    "has each column predict its own token instead of the next",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LabelsNotShifted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real, labels, IGNORED_LABEL)[:, :-1]


@mistake(
    "labels-shifted-twice",
    "has each column predict the token after the next",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LabelsShiftedTwice(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        shifted = np.full((len(labels), labels.shape[1] + 1), IGNORED_LABEL)
        shifted[:, :-1] = np.where(is_real, labels, IGNORED_LABEL)
        return np.where(is_real[:, :-1], shifted[:, 2:], IGNORED_LABEL)


@mistake(
    "padding-counted", "counts tokens at padded columns", "GRD-1", first=NO_INTERMEDIATE, needs="gradients padding"
)
class PaddingCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:  # noqa: ARG002
        return labels[:, 1:]


@mistake(
    "token-after-padding-counted",
    "counts the first token after padding, which a padded column predicts",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients padding",
)
class TokenAfterPaddingCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real[:, 1:], labels[:, 1:], IGNORED_LABEL)


@mistake(
    "ignored-label-counted",
    "reads a label of -100 as token 0",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class IgnoredLabelCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real[:, 1:] & is_real[:, :-1], np.maximum(labels[:, 1:], 0), IGNORED_LABEL)


# --- the embedding and its tied head ---------------------------------------------------------------------------------


@mistake(
    "tied-gradient",
    "loses the part of a tied LM head in the gradient of the embedding",
    "GRD-4",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class TiedGradient(InstrumentedModel):
    def head_vjp(self, hidden: Array, dlogits: Array) -> Array:
        if not self.config.tie_word_embeddings:
            return super().head_vjp(hidden, dlogits)
        return dlogits @ self.params.word_embedding


@mistake(
    "lookup-gradient",
    "loses the part of the embedding lookup in the gradient of the embedding",
    "GRD-4",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LookupGradient(InstrumentedModel):
    def added_rows(self, token_ids: Array, dx: Array, tokens: int) -> Array:
        return 0.0 * super().added_rows(token_ids, dx, tokens)


@mistake(
    "repeated-token-overwrites",
    "keeps the gradient of the last position of each token instead of their sum",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class RepeatedTokenOverwrites(InstrumentedModel):
    def added_rows(self, token_ids: Array, dx: Array, tokens: int) -> Array:
        rows = np.zeros((self.samples, tokens, dx.shape[-1]), dx.dtype)
        rows[0, token_ids.reshape(-1)] = dx.reshape(-1, dx.shape[-1])
        return rows


# --- rules of single operations --------------------------------------------------------------------------------------


@mistake(
    "gelu-gradient-without-cube",
    "omits the cubic term from the derivative of GELU",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class GeluGradientWithoutCube(InstrumentedModel):
    def gelu_slope(self, square: Array) -> Array:
        return np.full_like(square, GELU_CONSTANT)


@mistake(
    "gelu-gradient-exact",
    "differentiates the exact GELU instead of its tanh form",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class GeluGradientExact(InstrumentedModel):
    def gelu_vjp(self, u: Array, dy: Array) -> Array:
        below = np.vectorize(lambda x: 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))), otypes=[u.dtype])(u)
        return dy * (below + u * np.exp(-0.5 * u * u) / u.dtype.type(math.sqrt(2.0 * math.pi)))


@mistake(
    "softmax-gradient-without-sum",
    "omits the sum over the keys from the gradient of softmax",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class SoftmaxGradientWithoutSum(InstrumentedModel):
    def softmax_vjp(self, p: Array, dp: Array) -> Array:
        return p * dp


@mistake(
    "query-gradient-unscaled",
    "forgets the factor 1 / sqrt(K) in the gradient of the query",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class QueryGradientUnscaled(InstrumentedModel):
    def attention_vjp(self, dcontext: Array) -> tuple[Array, Array, Array]:
        dquery, dkey, dvalue = super().attention_vjp(dcontext)
        return dquery / self.scale(), dkey, dvalue


@mistake(
    "key-gradient-unscaled",
    "forgets the factor 1 / sqrt(K) in the gradient of the key",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class KeyGradientUnscaled(InstrumentedModel):
    def attention_vjp(self, dcontext: Array) -> tuple[Array, Array, Array]:
        dquery, dkey, dvalue = super().attention_vjp(dcontext)
        return dquery, dkey / self.scale(), dvalue


@mistake(
    "query-key-gradients-swapped",
    "swaps the gradients of query and key",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class QueryKeyGradientsSwapped(InstrumentedModel):
    def attention_vjp(self, dcontext: Array) -> tuple[Array, Array, Array]:
        dquery, dkey, dvalue = super().attention_vjp(dcontext)
        return dkey, dquery, dvalue


@mistake(
    "value-gradient-lost",
    "stops the gradient at the values of attention",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class ValueGradientLost(InstrumentedModel):
    def attention_vjp(self, dcontext: Array) -> tuple[Array, Array, Array]:
        dquery, dkey, dvalue = super().attention_vjp(dcontext)
        return dquery, dkey, 0.0 * dvalue


@mistake(
    "qkv-gradient-in-blocks",
    "writes the gradients of query, key and value in three blocks instead of per head",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients heads",
)
class QkvGradientInBlocks(InstrumentedModel):
    def fused(self, dquery: Array, dkey: Array, dvalue: Array) -> Array:
        blocks = np.stack([dquery, dkey, dvalue], axis=1)  # (B, C, H, T, K)
        return blocks.transpose(0, 3, 1, 2, 4).reshape(blocks.shape[0], blocks.shape[3], -1)


@mistake(
    "norm-gradient-without-mean",
    "treats the mean of a layer norm as a constant in its gradient",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class NormGradientWithoutMean(InstrumentedModel):
    def normalised_vjp(self, n: Array, s: Array, g: Array) -> Array:
        return (g - n * self.mean(g * n)) / s


@mistake(
    "norm-gradient-without-variance",
    "treats the variance of a layer norm as a constant in its gradient",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class NormGradientWithoutVariance(InstrumentedModel):
    def normalised_vjp(self, n: Array, s: Array, g: Array) -> Array:  # noqa: ARG002
        return (g - self.mean(g)) / s


@mistake(
    "bias-gradient-lost",
    "returns zero for the gradients of biases",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class BiasGradientLost(InstrumentedModel):
    def bias_vjp(self, dy: Array) -> Array:
        return 0.0 * super().bias_vjp(dy)


@mistake(
    "bias-gradient-of-one-row",
    "sums the gradient of a bias over the positions of the first row only",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients rows",
)
class BiasGradientOfOneRow(InstrumentedModel):
    def bias_vjp(self, dy: Array) -> Array:
        return super().bias_vjp(dy[:1])


@mistake(
    "residual-gradient-lost",
    "stops the gradient at the residual connection",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class ResidualGradientLost(InstrumentedModel):
    def residual_vjp(self, layer: LayerParams, name: str, x: Array, dy: Array, dz: Array) -> Array:  # noqa: ARG002
        return self.layer_norm_vjp(layer, name, x, dz)


@mistake(
    "post-norm-gradient-past-norm",
    "sends the residual gradient of the post-layernorm form past the layer norm",
    "GRD-3",
    "MOD-3",
    first=NO_INTERMEDIATE,
    needs="gradients post-ln",
)
class PostNormGradientPastNorm(InstrumentedModel):
    def residual_vjp(self, layer: LayerParams, name: str, x: Array, dy: Array, dz: Array) -> Array:
        return dy + self.layer_norm_vjp(layer, name, x, dz)


# --- the whole backward pass -----------------------------------------------------------------------------------------


class Changed(InstrumentedModel):
    """The finished gradients, changed."""

    def backward(self, token_ids: Array, is_real: Array, labels: Array) -> tuple[Array, dict[str, Array]]:
        losses, gradients = super().backward(token_ids, is_real, labels)
        return losses, {key: self.changed(key, gradient) for key, gradient in gradients.items()}

    def changed(self, key: str, gradient: Array) -> Array:
        raise NotImplementedError


@mistake("zero-gradients", "returns zero for every gradient", "GRD-3", first=NO_INTERMEDIATE, needs="gradients")
class ZeroGradients(Changed):
    def changed(self, key: str, gradient: Array) -> Array:  # noqa: ARG002
        return 0.0 * gradient


@mistake(
    "gradients-negated", "returns every gradient with the other sign", "GRD-3", first=NO_INTERMEDIATE, needs="gradients"
)
class GradientsNegated(Changed):
    def changed(self, key: str, gradient: Array) -> Array:  # noqa: ARG002
        return -gradient


@mistake(
    "gradients-in-bfloat16",
    "rounds the finished gradients to bfloat16",
    "GRD-5",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class GradientsInBfloat16(Changed):
    def changed(self, key: str, gradient: Array) -> Array:  # noqa: ARG002
        return rounded(gradient, "bfloat16")


@mistake(
    "gradients-of-last-layer-only",
    "stops the backward pass after the last layer",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients deep",
)
class GradientsOfLastLayerOnly(InstrumentedModel):
    def mlp_block_vjp(self, layer: LayerParams, x: Array, dy: Array) -> Array:
        return super().mlp_block_vjp(layer, x, dy if self.index == self.config.num_layers - 1 else 0.0 * dy)


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
