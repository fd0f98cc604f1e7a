"""The loss and its gradients in float32: the whole model forwards and backwards over rows (N, D), N = B T positions.

A block stores its input, the fused query, key and value, the context, and the input of GELU. Norms, attention weights
and GELU are recomputed in the backward pass. Where the stored arrays would exceed half of the weights, a layer stores
its input alone and runs twice.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.numba_cpu.blas import limited, of_heads
from accel.numba_cpu.isa import thread_count
from accel.numba_cpu.training import kernels, lora_products, vocabulary_loss
from accel.numba_cpu.training.dropout import Rng, drop, undrop
from accel.numba_cpu.weight_packing import widened
from bloomref import alibi
from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.params import LAYER_WEIGHTS, LM_HEAD, MODEL_WEIGHTS, LayerParams, LoraFactors, Params, layer_key


@dataclass(eq=False)
class Gradients:
    """Gradients by Hugging Face key; those of frozen weights are not computed."""

    is_trainable: Callable[[str], bool]
    arrays: dict[str, Any]

    def add(self, key: str, compute: Callable[[], Any]) -> None:
        if self.is_trainable(key):
            self.arrays[key] = compute()


@dataclass(eq=False)
class LayerRecord:
    """Arrays and generator states that one layer stores for its backward pass;
    blocks are None where the layer runs again.
    """

    x: Any
    rng: Rng
    attention: "AttentionRecord | None" = None
    mlp: "MlpRecord | None" = None


@dataclass(eq=False)
class AttentionRecord:
    """`at_...`: copies of the generator before the draws at that place."""

    fused: Any
    context: Any
    at_qkv: Rng
    at_weights: Rng
    at_output: Rng
    dropped: Any


@dataclass(eq=False)
class MlpRecord:
    """`x`: the input of the block; `up`: the input of GELU; `at_...`:
    copies of the generator before the draws there.
    """

    x: Any
    up: Any
    at_up: Rng
    at_down: Rng
    dropped: Any


def loss_and_gradients(
    params: Params, config: BloomConfig, token_ids: Any, targets: Any, document: Any, trainable: Any, rng: Rng
) -> tuple[float, dict[str, Any]]:
    """`SupportsGradients.loss_and_gradients`."""
    gradients = Gradients(trainable, {})
    with limited():
        loss = TrainingPass(params, config, np.ascontiguousarray(document), gradients).run(token_ids, targets, rng)
    return loss, gradients.arrays


class TrainingPass:
    """One batch, forwards and backwards.

    Args:
        document: (B, T), the number of the document of each position; negative for padding.
        gradients: receives the gradients.
    """

    def __init__(self, params: Params, config: BloomConfig, document: Any, gradients: Gradients) -> None:
        self.params, self.config, self.document, self.gradients = params, config, document, gradients
        self.batch, self.time = document.shape
        self.epsilon = np.float32(config.layer_norm_epsilon)
        self.slopes = alibi.slopes(config.num_heads)
        self.scale = np.float32(1.0 / math.sqrt(config.head_dim))

    # --- the model -------------------------------------------------------------------------------

    def run(self, token_ids: Any, targets: Any, rng: Rng) -> float:
        """The mean loss of a batch (B, T). `targets` (B, T): the token that each position predicts, or -100."""
        params, ids = self.params, token_ids.reshape(-1)
        embedded = params.word_embedding[ids].astype(np.float32, copy=False)
        for factors in params.adapters.get("word_embedding", ()):
            embedded = embedded + lora_products.lookup(factors, ids)
        x = self._norm(embedded, params.ln_embedding_weight, params.ln_embedding_bias)
        tape: list[LayerRecord] = []
        for layer in params.layers:
            x = self._forward(layer, x, rng, tape)
        loss, dx = self._head(x, targets.reshape(-1))
        for i in reversed(range(len(params.layers))):
            dx = self._backward(params.layers[i], i, tape.pop(), dx)
        self._embedding_back(ids, embedded, dx)
        return loss

    def _forward(self, layer: LayerParams, x: Any, rng: Rng, tape: list[LayerRecord]) -> Any:
        record = LayerRecord(x, deepcopy(rng))
        y = self._run_layer(layer, record, x, rng)
        if self._is_tight():
            record.attention = record.mlp = None
        tape.append(record)
        return y

    def _run_layer(self, layer: LayerParams, record: LayerRecord, x: Any, rng: Rng) -> Any:
        middle, record.attention = self._attention(layer, x, rng)
        y, record.mlp = self._mlp(layer, middle, rng)
        return y

    def _is_tight(self) -> bool:
        """True if the records of all layers would exceed half of the weights."""
        config = self.config
        width = 6 * config.hidden_dim + config.intermediate_dim
        weights = 12 * config.hidden_dim**2 * config.num_layers + config.vocabulary_size * config.hidden_dim
        return self.batch * self.time * width * config.num_layers > weights // 2

    def _backward(self, layer: LayerParams, index: int, record: LayerRecord, dy: Any) -> Any:
        if record.attention is None:
            self._run_layer(layer, record, record.x, deepcopy(record.rng))
        assert record.attention is not None
        assert record.mlp is not None
        dy = self._mlp_back(layer, index, record.mlp, dy)
        return self._attention_back(layer, index, record.x, record.attention, dy)

    # --- blocks ----------------------------------------------------------------------------------

    def _attention(self, layer: LayerParams, x: Any, rng: Rng) -> tuple[Any, AttentionRecord]:
        normed = self._norm(x, layer.ln_attn_weight, layer.ln_attn_bias)
        at_qkv = deepcopy(rng)
        fused = self._linear(layer, "qkv", normed, rng)
        at_weights = deepcopy(rng)
        query, key, value = self._heads(fused)
        weights, _ = drop(self._weights(query, key), self.config.attention_dropout, rng)
        context = np.empty((self.batch, self.time, self.config.num_heads, self.config.head_dim), np.float32)
        of_heads(weights, value, context.swapaxes(1, 2))
        context = context.reshape(x.shape)
        at_output = deepcopy(rng)
        output, dropped = drop(self._linear(layer, "attn_out", context, rng), self.config.hidden_dropout, rng)
        return self._residual(x, normed, output), AttentionRecord(
            fused, context, at_qkv, at_weights, at_output, dropped
        )

    def _attention_back(self, layer: LayerParams, index: int, x: Any, record: AttentionRecord, dy: Any) -> Any:
        normed = self._norm(x, layer.ln_attn_weight, layer.ln_attn_bias)
        query, key, value = self._heads(record.fused)
        weights = self._weights(query, key)
        dropped_weights, dropped = drop(weights, self.config.attention_dropout, deepcopy(record.at_weights))
        doutput = undrop(dy, record.dropped, self.config.hidden_dropout)
        dcontext = self._linear_back(layer, index, "attn_out", record.context, doutput, record.at_output)
        dcontext = dcontext.reshape(self.batch, self.time, self.config.num_heads, -1).swapaxes(1, 2)
        dfused = np.empty_like(record.fused)
        dquery, dkey, dvalue = self._heads(dfused)
        of_heads(dropped_weights.swapaxes(-1, -2), dcontext, dvalue)
        dweights = of_heads(dcontext, value.swapaxes(-1, -2), np.empty_like(weights))
        dscores = undrop(dweights, dropped, self.config.attention_dropout)
        kernels.softmax_back(weights, dscores, self.scale)
        of_heads(dscores, key, dquery)
        of_heads(dscores.swapaxes(-1, -2), query, dkey)
        dnormed = self._linear_back(layer, index, "qkv", normed, dfused, record.at_qkv)
        return self._block_back(layer, index, "ln_attn", x, dy, dnormed)

    def _mlp(self, layer: LayerParams, x: Any, rng: Rng) -> tuple[Any, MlpRecord]:
        normed = self._norm(x, layer.ln_mlp_weight, layer.ln_mlp_bias)
        at_up = deepcopy(rng)
        up = self._linear(layer, "mlp_up", normed, rng)
        inner = np.empty_like(up)
        kernels.gelu_rows(up, inner)
        at_down = deepcopy(rng)
        output, dropped = drop(self._linear(layer, "mlp_down", inner, rng), self.config.hidden_dropout, rng)
        return self._residual(x, normed, output), MlpRecord(x, up, at_up, at_down, dropped)

    def _mlp_back(self, layer: LayerParams, index: int, record: MlpRecord, dy: Any) -> Any:
        normed = self._norm(record.x, layer.ln_mlp_weight, layer.ln_mlp_bias)
        inner = np.empty_like(record.up)
        kernels.gelu_rows(record.up, inner)
        doutput = undrop(dy, record.dropped, self.config.hidden_dropout)
        dinner = self._linear_back(layer, index, "mlp_down", inner, doutput, record.at_down)
        kernels.gelu_back(record.up, dinner)
        dnormed = self._linear_back(layer, index, "mlp_up", normed, dinner, record.at_up)
        return self._block_back(layer, index, "ln_mlp", record.x, dy, dnormed)

    def _residual(self, x: Any, normed: Any, output: Any) -> Any:
        """MOD-3. Overwrites `output`."""
        kernels.add_rows(output, normed if self.config.apply_residual_connection_post_layernorm else x)
        return output

    def _block_back(self, layer: LayerParams, index: int, name: str, x: Any, dy: Any, dnormed: Any) -> Any:
        """Backward pass of the block's norm and residual, in either residual form (MOD-3). Overwrites `dnormed`."""
        base = dy
        if self.config.apply_residual_connection_post_layernorm:
            kernels.add_rows(dnormed, dy)
            base = np.zeros_like(dy)
        return self._norm_back(layer, _keys_of(index), name, x, dnormed, base)

    # --- attention weights -----------------------------------------------------------------------

    def _heads(self, fused: Any) -> tuple[Any, Any, Any]:
        """Views (B, H, T, K) of the fused rows (ATT-2)."""
        shape = (self.batch, self.time, self.config.num_heads, 3, self.config.head_dim)
        per_head = fused.reshape(shape)
        query, key, value = (per_head[:, :, :, c].swapaxes(1, 2) for c in range(3))
        return query, key, value

    def _weights(self, query: Any, key: Any) -> Any:
        shape = (self.batch, self.config.num_heads, self.time, self.time)
        scores = of_heads(query, key.swapaxes(-1, -2), np.empty(shape, np.float32))
        kernels.softmax(scores, self.scale, self.slopes, self.document)
        return scores

    # --- operations ------------------------------------------------------------------------------

    def _norm(self, x: Any, weight: Any, bias: Any) -> Any:
        out = np.empty_like(x)
        kernels.norm(x, _wide(weight), _wide(bias), self.epsilon, out, thread_count())
        return out

    def _norm_back(self, owner: Any, keys: Mapping[str, str], name: str, x: Any, dz: Any, base: Any) -> Any:
        weight, threads = getattr(owner, f"{name}_weight"), thread_count()
        named = {part: keys[f"{name}_{part}"] for part in ("weight", "bias")}
        is_trained = any(map(self.gradients.is_trainable, named.values()))
        sums = np.zeros((2, threads if is_trained else 0, x.shape[1]), np.float32)
        dx = np.empty_like(x)
        kernels.norm_back(x, _wide(weight), self.epsilon, dz, base, dx, sums[0], sums[1], threads)
        for per_thread, key in zip(sums, named.values(), strict=True):
            self.gradients.add(key, lambda per_thread=per_thread: per_thread.sum(axis=0))  # type: ignore[misc]
        return dx

    def _linear(self, layer: LayerParams, name: str, x: Any, rng: Rng) -> Any:
        weight, bias = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias")
        y = x @ _wide(weight).reshape(-1, x.shape[1]).T
        kernels.add_bias(y, _wide(bias).reshape(-1))
        for factors in layer.adapters.get(f"{name}_weight", ()):
            lora_products.add_product(y, factors, x, rng)
        return y

    def _linear_back(self, layer: LayerParams, index: int, name: str, x: Any, dy: Any, rng: Rng) -> Any:
        weight, bias = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias")
        keys = _keys_of(index)
        self.gradients.add(keys[f"{name}_weight"], lambda: (dy.T @ x).reshape(weight.shape))
        self.gradients.add(keys[f"{name}_bias"], lambda: _column_sums(dy).reshape(bias.shape))
        dx = dy @ _wide(weight).reshape(-1, x.shape[1])
        for factors in layer.adapters.get(f"{name}_weight", ()):
            take = self._factor_gradients(keys[f"{name}_weight"], factors)
            kernels.add_rows(dx, lora_products.product_vjp(factors, x, dy, rng, take))
        return dx

    def _factor_gradients(self, weight_key: str, factors: LoraFactors) -> lora_products.Take:
        """Store the gradients of one adapter's factors under their names."""
        return lambda name, compute: self.gradients.add(factors.key(weight_key, name), compute)

    # --- both ends -------------------------------------------------------------------------------

    def _head(self, x: Any, targets: Any) -> tuple[float, Any]:
        """The mean loss, and its gradient by the last block's output. Positions without a target skip the head."""
        params = self.params
        tied = params.lm_head is None
        head, key = (params.word_embedding, _MODEL["word_embedding"]) if tied else (params.lm_head, _MODEL["lm_head"])
        (rows,) = np.nonzero(targets != IGNORED_LABEL)
        normed = self._norm(x[rows], params.ln_final_weight, params.ln_final_bias)
        loss, dnormed, dhead = vocabulary_loss.loss_and_gradients(
            head, normed, targets[rows], self.gradients.is_trainable(key)
        )
        if dhead is not None:
            self.gradients.arrays[key] = dhead
        dx = np.zeros_like(x)
        base = np.zeros_like(normed)
        dx[rows] = self._norm_back(params, _MODEL, "ln_final", x[rows], dnormed, base)
        return loss, dx

    def _embedding_back(self, ids: Any, embedded: Any, dx: Any) -> None:
        params, key = self.params, _MODEL["word_embedding"]
        dx = self._norm_back(params, _MODEL, "ln_embedding", embedded, dx, np.zeros_like(dx))
        if self.gradients.is_trainable(key):
            total = self.gradients.arrays.setdefault(key, np.zeros(params.word_embedding.shape, np.float32))
            np.add.at(total, ids, dx)
        for factors in params.adapters.get("word_embedding", ()):
            lora_products.lookup_vjp(factors, ids, dx, self._factor_gradients(key, factors))


_MODEL = {weight.attribute: weight.hf_key for weight in (*MODEL_WEIGHTS, LM_HEAD)}


def _keys_of(index: int) -> dict[str, str]:
    return {weight.attribute: layer_key(index, weight) for weight in LAYER_WEIGHTS}


def _wide(weight: Any) -> Any:
    """The weight in float32, contiguous. A 16-bit weight is converted anew at each use."""
    return np.ascontiguousarray(widened(weight))


def _column_sums(d: Any) -> Any:
    sums = np.zeros((thread_count(), d.shape[1]), np.float32)
    kernels.column_sums(d, sums, len(sums))
    return sums.sum(axis=0)
