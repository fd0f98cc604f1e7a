"""Mistakes in splitting a model over two ranks; with an odd number of heads there is one rank, and no mistake."""

import numpy as np

from bloomref import alibi
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


class TwoRanks(InstrumentedModel):
    """A model that simulates two ranks, or one if the number of heads is odd."""

    @property
    def ranks(self) -> int:
        return 2 - self.config.num_heads % 2


@mistake(
    "bias-on-every-rank",
    "adds the bias of the attention output on each of two ranks before the sum",
    "ATT-9",
    first="attention.output",
    needs="even-heads",
)
class BiasOnEveryRank(TwoRanks):
    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        weight = layer.attn_out_weight.reshape(self.config.hidden_dim, -1)
        return self.linear(context, weight, layer.attn_out_bias * self.ranks)


@mistake(
    "mlp-bias-on-every-rank",
    "adds the bias of the MLP output on each of two ranks before the sum",
    "MLP-3",
    first="mlp.output",
    needs="even-heads",
)
class MlpBiasOnEveryRank(TwoRanks):
    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_down_weight, layer.mlp_down_bias * self.ranks)


@mistake(
    "slopes-of-rank",
    "computes slopes on each of two ranks for the rank's number of heads",
    "ALI-1",
    first="attention.scores",
    needs="even-heads",
)
class SlopesOfRank(TwoRanks):
    def slopes(self) -> Array:
        return np.tile(alibi.slopes(self.config.num_heads // self.ranks, self.dtype), self.ranks)


@mistake(
    "first-slopes-on-every-rank",
    "uses the slopes of the first heads on each of two ranks",
    "ALI-1",
    first="attention.scores",
    needs="even-heads",
)
class FirstSlopesOnEveryRank(TwoRanks):
    def slopes(self) -> Array:
        return np.tile(super().slopes()[: self.config.num_heads // self.ranks], self.ranks)


@mistake(
    "qkv-blocks-in-rank",
    "splits QKV on each of two ranks in three blocks instead of per head",
    "ATT-2",
    "WGT-3",
    first="attention.query",
    needs="even-heads",
)
class QkvBlocksInRank(TwoRanks):
    def split(self, fused: Array) -> tuple[Array, Array, Array]:
        if self.ranks == 1:
            return super().split(fused)
        batch, time, _ = fused.shape
        blocks = fused.reshape(batch, time, 2, 3, self.config.num_heads // 2, self.config.head_dim)
        heads = blocks.transpose(3, 0, 2, 4, 1, 5).reshape(3, batch, -1, time, self.config.head_dim)
        return heads[0], heads[1], heads[2]


@mistake(
    "sum-over-ranks-forgotten",
    "does not sum the attention output over two ranks",
    "ATT-9",
    first="attention.output",
    needs="even-heads",
)
class SumOverRanksForgotten(TwoRanks):
    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        half = self.config.hidden_dim // self.ranks
        weight = layer.attn_out_weight.reshape(self.config.hidden_dim, -1)
        return self.linear(context[..., :half], weight[:, :half], layer.attn_out_bias)


@mistake(
    "head-of-one-rank", "repeats the logits of the first half of the vocabulary in the second", "MOD-5", first="logits"
)
class HeadOfOneRank(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        half = logits.shape[-1] // 2
        return np.concatenate([logits[..., : logits.shape[-1] - half], logits[..., :half]], axis=-1)
