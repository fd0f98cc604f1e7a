"""The loss and its gradients, in float32: the whole model forwards and backwards over rows (N, D), N = B T positions.

A block keeps what its backward pass reads and cannot cheaply compute again: its input, the fused query, key and value, the
context, and the perceptron's inner sums; norms, attention weights and GELU are computed twice. Where even that would take more
memory than half of the weights, a layer keeps its input alone and runs twice.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.numba_cpu.blas import limited
from accel.numba_cpu.isa import thread_count
from accel.numba_cpu.training import kernels
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.params import LAYER_WEIGHTS, LM_HEAD, MODEL_WEIGHTS, LayerParams, Params, layer_key

Rng = np.random.Generator | None
LOGIT_BYTES = 1 << 29  # of logits that exist at a time
SLICE_BYTES = 1 << 26  # of a product that is added to the gradient of the head
IGNORED = -100


@dataclass(eq=False)
class Sink:
    """Takes gradients under the names of their weights; what is not wanted is not computed."""

    wanted: Callable[[str], bool]
    found: dict[str, Any]

    def add(self, key: str, compute: Callable[[], Any]) -> None:
        if self.wanted(key):
            self.found[key] = compute()


@dataclass(eq=False)
class Kept:
    """What one layer's forward pass leaves for its backward pass; None where the layer runs again."""

    x: Any
    rng: Rng
    attention: "Attention | None" = None
    perceptron: "Perceptron | None" = None


@dataclass(eq=False)
class Attention:
    fused: Any
    context: Any
    at_qkv: Rng
    at_weights: Rng
    at_output: Rng
    dropped: Any


@dataclass(eq=False)
class Perceptron:
    x: Any
    up: Any
    at_up: Rng
    at_down: Rng
    dropped: Any


def loss_and_gradients(
    params: Params, config: BloomConfig, token_ids: Any, targets: Any, document: Any, trainable: Any, rng: Rng
) -> tuple[float, dict[str, Any]]:
    """`SupportsGradients.loss_and_gradients`."""
    sink = Sink(trainable, {})
    with limited():
        loss = Step(params, config, np.ascontiguousarray(document), sink).run(token_ids, targets, rng)
    return loss, sink.found


class Step:
    """One batch. `targets` (B, T): what each position is to predict, or -100. `document` (B, T): negative for padding."""

    def __init__(self, params: Params, config: BloomConfig, document: Any, sink: Sink) -> None:
        self.params, self.config, self.document, self.sink = params, config, document, sink
        self.batch, self.time = document.shape
        self.epsilon = np.float32(config.layer_norm_epsilon)
        self.slopes = alibi.slopes(config.num_heads)
        self.scale = np.float32(1.0 / math.sqrt(config.head_dim))

    # --- the model -------------------------------------------------------------------------------

    def run(self, token_ids: Any, targets: Any, rng: Rng) -> float:
        """The mean loss; gradients are in the sink."""
        params, ids = self.params, token_ids.reshape(-1)
        looked_up = params.word_embedding[ids].astype(np.float32, copy=False)
        for adapter in params.adapters.get("word_embedding", ()):
            looked_up = looked_up + adapter(token_ids, rng).reshape(looked_up.shape)
        x = self._norm(looked_up, params.ln_embedding_weight, params.ln_embedding_bias)
        tape: list[Kept] = []
        for layer in params.layers:
            x = self._forward(layer, x, rng, tape)
        loss, dx = self._head(x, targets.reshape(-1))
        for i in reversed(range(len(params.layers))):
            dx = self._backward(params.layers[i], i, tape.pop(), dx)
        self._embedding_back(token_ids, looked_up, dx)
        return loss

    def _forward(self, layer: LayerParams, x: Any, rng: Rng, tape: list[Kept]) -> Any:
        kept = Kept(x, deepcopy(rng))
        y = self._run_layer(layer, kept, x, rng)
        if self._is_tight():
            kept.attention = kept.perceptron = None
        tape.append(kept)
        return y

    def _run_layer(self, layer: LayerParams, kept: Kept, x: Any, rng: Rng) -> Any:
        middle, kept.attention = self._attention(layer, x, rng)
        y, kept.perceptron = self._perceptron(layer, middle, rng)
        return y

    def _is_tight(self) -> bool:
        """Whether what the layers would keep is more than half of the weights."""
        config = self.config
        width = 6 * config.hidden_dim + config.intermediate_dim
        weights = 12 * config.hidden_dim**2 * config.num_layers + config.vocabulary_size * config.hidden_dim
        return self.batch * self.time * width * config.num_layers > weights // 2

    def _backward(self, layer: LayerParams, index: int, kept: Kept, dy: Any) -> Any:
        if kept.attention is None:
            self._run_layer(layer, kept, kept.x, deepcopy(kept.rng))
        assert kept.attention is not None
        assert kept.perceptron is not None
        dy = self._perceptron_back(layer, index, kept.perceptron, dy)
        return self._attention_back(layer, index, kept.x, kept.attention, dy)

    # --- blocks ----------------------------------------------------------------------------------

    def _attention(self, layer: LayerParams, x: Any, rng: Rng) -> tuple[Any, Attention]:
        normed = self._norm(x, layer.ln_attn_weight, layer.ln_attn_bias)
        at_qkv = deepcopy(rng)
        fused = self._linear(layer, "qkv", normed, rng)
        at_weights = deepcopy(rng)
        query, key, value = self._heads(fused)
        weights, _ = _drop(self._weights(query, key), self.config.attention_dropout, rng)
        context = np.empty((self.batch, self.time, self.config.num_heads, self.config.head_dim), np.float32)
        context.swapaxes(1, 2)[...] = weights @ value
        context = context.reshape(x.shape)
        at_output = deepcopy(rng)
        output, dropped = _drop(self._linear(layer, "attn_out", context, rng), self.config.hidden_dropout, rng)
        return self._residual(x, normed, output), Attention(fused, context, at_qkv, at_weights, at_output, dropped)

    def _attention_back(self, layer: LayerParams, index: int, x: Any, kept: Attention, dy: Any) -> Any:
        normed = self._norm(x, layer.ln_attn_weight, layer.ln_attn_bias)
        query, key, value = self._heads(kept.fused)
        weights = self._weights(query, key)
        dropped_weights, dropped = _drop(weights, self.config.attention_dropout, deepcopy(kept.at_weights))
        doutput = _undrop(dy, kept.dropped, self.config.hidden_dropout)
        dcontext = self._linear_back(layer, index, "attn_out", kept.context, doutput, kept.at_output)
        dcontext = dcontext.reshape(self.batch, self.time, self.config.num_heads, -1).swapaxes(1, 2)
        dfused = np.empty_like(kept.fused)
        dquery, dkey, dvalue = self._heads(dfused)
        dvalue[...] = dropped_weights.swapaxes(-1, -2) @ dcontext
        dscores = _undrop(dcontext @ value.swapaxes(-1, -2), dropped, self.config.attention_dropout)
        kernels.softmax_back(weights, dscores, self.scale)
        dquery[...] = dscores @ key
        dkey[...] = dscores.swapaxes(-1, -2) @ query
        dnormed = self._linear_back(layer, index, "qkv", normed, dfused, kept.at_qkv)
        return self._block_back(layer, index, "ln_attn", x, dy, dnormed)

    def _perceptron(self, layer: LayerParams, x: Any, rng: Rng) -> tuple[Any, Perceptron]:
        normed = self._norm(x, layer.ln_mlp_weight, layer.ln_mlp_bias)
        at_up = deepcopy(rng)
        up = self._linear(layer, "mlp_up", normed, rng)
        inner = np.empty_like(up)
        kernels.gelu_rows(up, inner)
        at_down = deepcopy(rng)
        output, dropped = _drop(self._linear(layer, "mlp_down", inner, rng), self.config.hidden_dropout, rng)
        return self._residual(x, normed, output), Perceptron(x, up, at_up, at_down, dropped)

    def _perceptron_back(self, layer: LayerParams, index: int, kept: Perceptron, dy: Any) -> Any:
        normed = self._norm(kept.x, layer.ln_mlp_weight, layer.ln_mlp_bias)
        inner = np.empty_like(kept.up)
        kernels.gelu_rows(kept.up, inner)
        doutput = _undrop(dy, kept.dropped, self.config.hidden_dropout)
        dinner = self._linear_back(layer, index, "mlp_down", inner, doutput, kept.at_down)
        kernels.gelu_back(kept.up, dinner)
        dnormed = self._linear_back(layer, index, "mlp_up", normed, dinner, kept.at_up)
        return self._block_back(layer, index, "ln_mlp", kept.x, dy, dnormed)

    def _residual(self, x: Any, normed: Any, output: Any) -> Any:
        """MOD-3. Overwrites `output`."""
        kernels.add_rows(output, normed if self.config.apply_residual_connection_post_layernorm else x)
        return output

    def _block_back(self, layer: LayerParams, index: int, name: str, x: Any, dy: Any, dnormed: Any) -> Any:
        """Through the norm, and past it or, in the other residual form, with it. Overwrites `dnormed`."""
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
        scores = query @ key.swapaxes(-1, -2)
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
        sums = np.zeros((2, threads if any(map(self.sink.wanted, named.values())) else 0, x.shape[1]), np.float32)
        dx = np.empty_like(x)
        kernels.norm_back(x, _wide(weight), self.epsilon, dz, base, dx, sums[0], sums[1], threads)
        for found, key in zip(sums, named.values(), strict=True):
            self.sink.add(key, lambda found=found: found.sum(axis=0))  # type: ignore[misc]
        return dx

    def _linear(self, layer: LayerParams, name: str, x: Any, rng: Rng) -> Any:
        weight, bias = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias")
        y = x @ _wide(weight).reshape(-1, x.shape[1]).T
        kernels.add_bias(y, _wide(bias).reshape(-1))
        for adapter in layer.adapters.get(f"{name}_weight", ()):
            kernels.add_rows(y, adapter(self._by_row(x), rng).reshape(y.shape))
        return y

    def _linear_back(self, layer: LayerParams, index: int, name: str, x: Any, dy: Any, rng: Rng) -> Any:
        weight, bias = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias")
        keys = _keys_of(index)
        self.sink.add(keys[f"{name}_weight"], lambda: (dy.T @ x).reshape(weight.shape))
        self.sink.add(keys[f"{name}_bias"], lambda: _column_sums(dy).reshape(bias.shape))
        dx = dy @ _wide(weight).reshape(-1, x.shape[1])
        for adapter in layer.adapters.get(f"{name}_weight", ()):
            more, factors = adapter.vjp(self._by_row(x), self._by_row(dy), rng)
            kernels.add_rows(dx, more.reshape(dx.shape))
            self._take(keys[f"{name}_weight"], adapter, factors)
        return dx

    def _by_row(self, x: Any) -> Any:
        return x.reshape(self.batch, self.time, -1)

    def _take(self, key: str, adapter: Any, factors: Mapping[str, Any]) -> None:
        module = key.removesuffix(".weight")
        for factor, gradient in factors.items():
            self.sink.add(adapter.key(module, factor), lambda gradient=gradient: gradient)  # type: ignore[misc]

    # --- both ends -------------------------------------------------------------------------------

    def _head(self, x: Any, targets: Any) -> tuple[float, Any]:
        """The mean loss, and its gradient by the last block's output; positions that predict nothing pass by the head."""
        params = self.params
        tied = params.lm_head is None
        head, key = (params.word_embedding, _MODEL["word_embedding"]) if tied else (params.lm_head, _MODEL["lm_head"])
        (rows,) = np.nonzero(targets != IGNORED)
        normed = self._norm(x[rows], params.ln_final_weight, params.ln_final_bias)
        dhead = np.zeros(head.shape, np.float32) if self.sink.wanted(key) else None
        losses, dnormed = np.zeros(len(rows)), np.empty_like(normed)
        step = max(1, LOGIT_BYTES // (4 * len(head)))
        wide = _wide(head)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            logits = normed[part] @ wide.T
            kernels.cross_entropy(logits, targets[rows[part]], np.float32(1.0 / len(rows)), losses[part])
            np.matmul(logits, wide, out=dnormed[part])
            if dhead is not None:
                _add_gradient(dhead, normed[part], logits)
        if dhead is not None:
            self.sink.found[key] = dhead
        dx = np.zeros_like(x)
        base = np.zeros_like(normed)
        dx[rows] = self._norm_back(params, _MODEL, "ln_final", x[rows], dnormed, base)
        return float(losses.sum()) / max(1, len(rows)), dx

    def _embedding_back(self, token_ids: Any, looked_up: Any, dx: Any) -> None:
        params, key = self.params, _MODEL["word_embedding"]
        dx = self._norm_back(params, _MODEL, "ln_embedding", looked_up, dx, np.zeros_like(dx))
        if self.sink.wanted(key):
            total = self.sink.found.setdefault(key, np.zeros(params.word_embedding.shape, np.float32))
            np.add.at(total, token_ids.reshape(-1), dx)
        for adapter in params.adapters.get("word_embedding", ()):
            self._take(key, adapter, adapter.vjp(token_ids, self._by_row(dx))[1])


_MODEL = {weight.attribute: weight.hf_key for weight in (*MODEL_WEIGHTS, LM_HEAD)}


def _keys_of(index: int) -> dict[str, str]:
    return {weight.attribute: layer_key(index, weight) for weight in LAYER_WEIGHTS}


def _wide(weight: Any) -> Any:
    """float32, contiguous; a 16-bit weight is widened for as long as it is used."""
    return np.ascontiguousarray(weight, dtype=np.float32)


def _add_gradient(total: Any, x: Any, dy: Any) -> None:
    """total += dy^T x, some rows of it at a time."""
    step = max(1, SLICE_BYTES // (4 * x.shape[1]))
    for start in range(0, len(total), step):
        kernels.add_rows(total[start : start + step], dy[:, start : start + step].T @ x)


def _column_sums(d: Any) -> Any:
    sums = np.zeros((thread_count(), d.shape[1]), np.float32)
    kernels.column_sums(d, sums, len(sums))
    return sums.sum(axis=0)


def _drop(x: Any, rate: float, rng: Rng) -> tuple[Any, Any]:
    """MOD-7 with the reference's draws; and what was dropped, None outside training."""
    if rng is None or rate == 0.0:
        return x, None
    dropped = rng.random(x.shape, np.float32) < rate
    return np.where(dropped, np.float32(0.0), x / np.float32(1.0 - rate)), dropped


def _undrop(d: Any, dropped: Any, rate: float) -> Any:
    return d if dropped is None else np.where(dropped, np.float32(0.0), d / np.float32(1.0 - rate))
