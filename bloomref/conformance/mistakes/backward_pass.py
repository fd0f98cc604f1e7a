"""Mistakes in the rules of the backward pass; the loss is right."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import GELU_CONSTANT, InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array

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
