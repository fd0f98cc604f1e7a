"""Mistakes in dividing a model over two ranks; where the heads are odd there is one rank, and no mistake."""

import numpy as np

from bloomref import alibi
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


class TwoRanks(InstrumentedModel):
    """A lab that knows how many ranks it stands for."""

    @property
    def ranks(self) -> int:
        return 2 - self.config.num_heads % 2


@mistake("bias-on-every-rank", "the bias of the attention output added on each of two ranks, and summed", "ATT-9", first="attention.output", needs="even-heads")  # fmt: skip
class BiasOnEveryRank(TwoRanks):
    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        weight = layer.attn_out_weight.reshape(self.config.hidden_dim, -1)
        return self.linear(context, weight, layer.attn_out_bias * self.ranks)


@mistake("mlp-bias-on-every-rank", "the bias of the MLP's output added on each of two ranks, and summed", "MLP-3", first="mlp.output", needs="even-heads")  # fmt: skip
class MlpBiasOnEveryRank(TwoRanks):
    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_down_weight, layer.mlp_down_bias * self.ranks)


@mistake("slopes-of-rank", "each of two ranks computes slopes for its own number of heads", "ALI-1", first="attention.scores", needs="even-heads")  # fmt: skip
class SlopesOfRank(TwoRanks):
    def slopes(self) -> Array:
        return np.tile(alibi.slopes(self.config.num_heads // self.ranks, self.dtype), self.ranks)


@mistake("first-slopes-on-every-rank", "each of two ranks takes the slopes of the first heads", "ALI-1", first="attention.scores", needs="even-heads")  # fmt: skip
class FirstSlopesOnEveryRank(TwoRanks):
    def slopes(self) -> Array:
        return np.tile(super().slopes()[: self.config.num_heads // self.ranks], self.ranks)


@mistake("qkv-blocks-in-rank", "on each of two ranks QKV split in three blocks instead of per head", "ATT-2", "WGT-3", first="attention.query", needs="even-heads")  # fmt: skip
class QkvBlocksInRank(TwoRanks):
    def split(self, fused: Array) -> tuple[Array, Array, Array]:
        if self.ranks == 1:
            return super().split(fused)
        batch, time, _ = fused.shape
        blocks = fused.reshape(batch, time, 2, 3, self.config.num_heads // 2, self.config.head_dim)
        heads = blocks.transpose(3, 0, 2, 4, 1, 5).reshape(3, batch, -1, time, self.config.head_dim)
        return heads[0], heads[1], heads[2]


@mistake("sum-over-ranks-forgotten", "the partial sums of the attention output not added over two ranks", "ATT-9", first="attention.output", needs="even-heads")  # fmt: skip
class SumOverRanksForgotten(TwoRanks):
    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        half = self.config.hidden_dim // self.ranks
        weight = layer.attn_out_weight.reshape(self.config.hidden_dim, -1)
        return self.linear(context[..., :half], weight[:, :half], layer.attn_out_bias)


@mistake(
    "head-of-one-rank", "the logits of the second half of the vocabulary those of the first", "MOD-5", first="logits"
)
class HeadOfOneRank(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        half = logits.shape[-1] // 2
        return np.concatenate([logits[..., : logits.shape[-1] - half], logits[..., :half]], axis=-1)
