"""Mistakes in residuals."""

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedCache, InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


@mistake(
    "post-norm-ignored",
    "ignores apply_residual_connection_post_layernorm",
    "MOD-3",
    first="attention_block",
    needs="post-ln",
)
class PostNormIgnored(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.stored(x + output)


@mistake(
    "post-norm-in-attention-only",
    "honours apply_residual_connection_post_layernorm in the attention block only",
    "MOD-3",
    first="mlp_block",
    needs="post-ln",
)
class PostNormInAttentionOnly(InstrumentedModel):
    def mlp_residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.stored(x + output)


@mistake(
    "post-norm-in-mlp-only",
    "honours apply_residual_connection_post_layernorm in the MLP block only",
    "MOD-3",
    first="attention_block",
    needs="post-ln",
)
class PostNormInMlpOnly(InstrumentedModel):
    def attention_residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.stored(x + output)


@mistake(
    "post-norm-always",
    "uses the post-layernorm residual although the config does not",
    "MOD-3",
    first="attention_block",
)
class PostNormAlways(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.stored(normed + output)


@mistake(
    "no-attention-residual", "omits the residual of the attention block", "ATT-10", "MOD-3", first="attention_block"
)
class NoAttentionResidual(InstrumentedModel):
    def attention_residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return output


@mistake("no-mlp-residual", "omits the residual of the MLP block", "MLP-4", "MOD-3", first="mlp_block")
class NoMlpResidual(InstrumentedModel):
    def mlp_residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return output


@mistake(
    "parallel-blocks",
    "feeds the MLP with the input of the attention block, like GPT-J, instead of its output",
    "MOD-2",
    first="mlp.norm",
)
class ParallelBlocks(InstrumentedModel):
    def block(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Array:
        normed = self.record("attention.norm", self.attention_norm(layer, x))
        output = self.attention(layer, normed, cache, start, visible, bias)
        attended = self.record("attention_block", self.attention_residual(x, normed, output))
        normed = self.record("mlp.norm", self.mlp_norm(layer, x))
        return self.record("mlp_block", self.mlp_residual(attended, normed, self.mlp(layer, normed)))


@mistake(
    "mlp-residual-from-start",
    "adds the output of the MLP to the input of the attention block",
    "MOD-3",
    first="mlp_block",
)
class MlpResidualFromStart(InstrumentedModel):
    def attention_residual(self, x: Array, normed: Array, output: Array) -> Array:
        self.before = normed if self.config.apply_residual_connection_post_layernorm else x
        return super().attention_residual(x, normed, output)

    def mlp_residual(self, x: Array, normed: Array, output: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.stored(self.before + output)


@mistake(
    "dropout-scale",
    "scales the outputs of blocks by 0.9 outside training, as if one in ten were dropped",
    "MOD-10",
    first="attention_block",
)
class DropoutScale(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        return super().residual(x, normed, output * 0.9)


@mistake("residual-clipped", "clips hidden states to [-1, 1]", "MOD-3", first="attention_block")
class ResidualClipped(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        return np.clip(super().residual(x, normed, output), -1.0, 1.0)


@mistake(
    "residual-in-place",
    "adds to the hidden state in place, which changes the intermediate that it returned before",
    "MOD-8",
    first="embedding_norm",
)
class ResidualInPlace(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        if self.config.apply_residual_connection_post_layernorm:
            return super().residual(x, normed, output)
        x += output
        return x
