"""Mistakes in layer norms."""

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


@mistake("no-attention-norm", "applies no layer norm before attention", "ATT-1", first="attention.norm")
class NoAttentionNorm(InstrumentedModel):
    def attention_norm(self, layer: LayerParams, x: Array) -> Array:  # noqa: ARG002
        return x


@mistake("no-mlp-norm", "applies no layer norm before the MLP", "MLP-1", first="mlp.norm")
class NoMlpNorm(InstrumentedModel):
    def mlp_norm(self, layer: LayerParams, x: Array) -> Array:  # noqa: ARG002
        return x


@mistake("no-final-norm", "applies no layer norm after the last block", "MOD-4", first="final_norm")
class NoFinalNorm(InstrumentedModel):
    def final_norm(self, x: Array) -> Array:
        return self.arithmetic.stored(x)


@mistake("one-norm-per-block", "uses the layer norm weights of attention for the MLP", "MLP-1", first="mlp.norm")
class OneNormPerBlock(InstrumentedModel):
    def mlp_norm(self, layer: LayerParams, x: Array) -> Array:
        return self.layer_norm(x, layer.ln_attn_weight, layer.ln_attn_bias)


@mistake(
    "epsilon-1e-6",
    "uses epsilon 1e-6 in every layer norm, whatever the config says",
    "EMB-4",
    first="embedding_norm",
    needs="eps-sensitive",
)
class Epsilon1e6(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-6


@mistake(
    "epsilon-1e-12",
    "uses epsilon 1e-12 in every layer norm, whatever the config says",
    "EMB-4",
    first="embedding_norm",
    needs="eps-sensitive",
)
class Epsilon1e12(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-12


@mistake(
    "epsilon-fixed",
    "uses epsilon 1e-5, whatever the config says",
    "EMB-4",
    first="embedding_norm",
    needs="epsilon eps-sensitive",
)
class EpsilonFixed(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-5


@mistake(
    "epsilon-outside", "adds epsilon outside the square root", "EMB-3", first="embedding_norm", needs="eps-sensitive"
)
class EpsilonOutside(InstrumentedModel):
    def deviation(self, variance: Array) -> Array:
        return np.sqrt(variance) + self.epsilon()


@mistake(
    "epsilon-of-embedding",
    "uses epsilon 1e-6 in the layer norm of the embedding only",
    "EMB-4",
    first="embedding_norm",
    needs="eps-sensitive",
)
class EpsilonOfEmbedding(InstrumentedModel):
    in_embedding = False

    def embedding_norm(self, x: Array) -> Array:
        self.in_embedding = True
        try:
            return super().embedding_norm(x)
        finally:
            self.in_embedding = False

    def epsilon(self) -> float:
        return 1e-6 if self.in_embedding else super().epsilon()


@mistake("unbiased-variance", "divides the variance by D - 1 instead of D", "EMB-3", first="embedding_norm")
class UnbiasedVariance(InstrumentedModel):
    def variance(self, centred: Array) -> Array:
        width = centred.shape[-1]
        return super().variance(centred) * (width / max(width - 1, 1))


@mistake(
    "mean-not-subtracted", "does not subtract the mean in layer norm, like RMSNorm", "EMB-3", first="embedding_norm"
)
class MeanNotSubtracted(InstrumentedModel):
    def centred(self, x: Array) -> Array:
        return x


@mistake("norm-bias-dropped", "omits the biases of layer norms", "EMB-3", first="embedding_norm")
class NormBiasDropped(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, weight, np.zeros_like(bias))


@mistake("norm-gain-dropped", "omits the weights of layer norms", "EMB-3", first="embedding_norm")
class NormGainDropped(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, np.ones_like(weight), bias)


@mistake(
    "norm-gain-plus-one",
    "multiplies by 1 + w in layer norms, where w is the whole weight",
    "EMB-3",
    first="embedding_norm",
)
class NormGainPlusOne(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, weight + 1.0, bias)


@mistake(
    "variance-in-float16",
    "rounds the variance to float16, in which that of the embedding vanishes",
    "EMB-3",
    "NUM-2",
    first="embedding_norm",
    needs="eps-sensitive",
)
class VarianceInFloat16(InstrumentedModel):
    def variance(self, centred: Array) -> Array:
        return rounded(super().variance(centred), "float16")
