"""Mistakes in layer norms."""

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


@mistake("no-attention-norm", "attention reads its input without layer norm", "ATT-1", first="attention.norm")
class NoAttentionNorm(InstrumentedModel):
    def attention_norm(self, layer: LayerParams, x: Array) -> Array:  # noqa: ARG002
        return x


@mistake("no-mlp-norm", "the MLP reads its input without layer norm", "MLP-1", first="mlp.norm")
class NoMlpNorm(InstrumentedModel):
    def mlp_norm(self, layer: LayerParams, x: Array) -> Array:  # noqa: ARG002
        return x


@mistake("no-final-norm", "no layer norm after the last block", "MOD-4", first="final_norm")
class NoFinalNorm(InstrumentedModel):
    def final_norm(self, x: Array) -> Array:
        return self.arithmetic.stored(x)


@mistake("one-norm-per-block", "the MLP uses the layer norm weights of attention", "MLP-1", first="mlp.norm")
class OneNormPerBlock(InstrumentedModel):
    def mlp_norm(self, layer: LayerParams, x: Array) -> Array:
        return self.layer_norm(x, layer.ln_attn_weight, layer.ln_attn_bias)


@mistake("epsilon-1e-6", "epsilon 1e-6 in every layer norm, whatever the config says", "EMB-4", first="embedding_norm", needs="eps-sensitive")  # fmt: skip
class Epsilon1e6(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-6


@mistake("epsilon-1e-12", "epsilon 1e-12 in every layer norm, whatever the config says", "EMB-4", first="embedding_norm", needs="eps-sensitive")  # fmt: skip
class Epsilon1e12(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-12


@mistake("epsilon-fixed", "epsilon 1e-5, whatever the config says", "EMB-4", first="embedding_norm", needs="epsilon eps-sensitive")  # fmt: skip
class EpsilonFixed(InstrumentedModel):
    def epsilon(self) -> float:
        return 1e-5


@mistake("epsilon-outside", "epsilon added outside the square root", "EMB-3", first="embedding_norm", needs="eps-sensitive")  # fmt: skip
class EpsilonOutside(InstrumentedModel):
    def deviation(self, variance: Array) -> Array:
        return np.sqrt(variance) + self.epsilon()


@mistake("epsilon-of-embedding", "epsilon 1e-6 in the layer norm of the embedding alone", "EMB-4", first="embedding_norm", needs="eps-sensitive")  # fmt: skip
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


@mistake("unbiased-variance", "the variance divided by D - 1", "EMB-3", first="embedding_norm")
class UnbiasedVariance(InstrumentedModel):
    def variance(self, centred: Array) -> Array:
        width = centred.shape[-1]
        return super().variance(centred) * (width / max(width - 1, 1))


@mistake("mean-not-subtracted", "root mean square instead of layer norm: the mean is not subtracted", "EMB-3", first="embedding_norm")  # fmt: skip
class MeanNotSubtracted(InstrumentedModel):
    def centred(self, x: Array) -> Array:
        return x


@mistake("norm-bias-dropped", "layer norms without their biases", "EMB-3", first="embedding_norm")
class NormBiasDropped(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, weight, np.zeros_like(bias))


@mistake("norm-gain-dropped", "layer norms without their weights", "EMB-3", first="embedding_norm")
class NormGainDropped(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, np.ones_like(weight), bias)


@mistake("norm-gain-plus-one", "layer norm weights stored as 1 + w, added once too often", "EMB-3", first="embedding_norm")  # fmt: skip
class NormGainPlusOne(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, weight + 1.0, bias)


@mistake("variance-in-float16", "the variance rounded to float16, where that of the embedding vanishes", "EMB-3", "NUM-2", first="embedding_norm", needs="eps-sensitive")  # fmt: skip
class VarianceInFloat16(InstrumentedModel):
    def variance(self, centred: Array) -> Array:
        return rounded(super().variance(centred), "float16")
