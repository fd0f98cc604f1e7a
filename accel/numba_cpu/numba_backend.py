"""The Numba backend behind bloomref's interface."""

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.numba_cpu import norm
from accel.numba_cpu.attention import tile_elements, workspace
from accel.numba_cpu.blocks import attention_block, mlp_block
from accel.numba_cpu.float64 import DoublePrepared
from accel.numba_cpu.isa import NR, thread_count
from accel.numba_cpu.jit_cache import is_marked, mark
from accel.numba_cpu.linear import BFLOAT16, FLOAT16, FLOAT32, PLAIN, SUMS, product, put_rows
from accel.numba_cpu.memory import cache_elements, memory
from accel.numba_cpu.packed_cache import Store, open_store
from accel.numba_cpu.weight_packing import FORMATS, Linear, aligned, pack, panel_bytes, up, vector
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import Unsupported, describe
from bloomref.params import LayerParams, Params, Source, init_params, keys
from bloomref.runtime.backend import API_VERSION, Memory, Step
from bloomref.shapes import Array, Bool

_ROUNDING = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


@dataclass(frozen=True, eq=False)
class Hidden:
    """(B T, D rounded up to whole panels) float32 numbers that the compute dtype can hold."""

    rows: Any
    batch: int
    time: int


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values in the layout of `attention`, one flat array of each a layer."""

    keys: list[Any]
    values: list[Any]
    batch: int
    capacity: int

    def select(self, rows: Any) -> "Cache":
        def take(flat: Any) -> Any:
            width = flat.size // max(self.batch, 1)
            out = aligned((len(rows), width), flat.dtype)
            return np.take(flat.reshape(self.batch, width), rows, 0, out).reshape(-1)

        return Cache([take(k) for k in self.keys], [take(v) for v in self.values], len(rows), self.capacity)


@dataclass(frozen=True, eq=False)
class _Layer:
    ln_attn: tuple[Any, Any, Any]
    qkv: Linear
    dense: Linear
    ln_mlp: tuple[Any, Any, Any]
    up: Linear
    down: Linear


class NumbaPrepared:
    """One model's weights, packed once; the same copy serves long prompts and single tokens."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.config = config
        self.dtype = policy.compute_dtype
        self._form = FORMATS[self.dtype]
        self._rounding = _ROUNDING[self.dtype.name]
        self._variable = policy.variable_dtype
        self._local = threading.local()
        self._slopes = alibi.slopes(config.num_heads)
        self._scale = np.float32(1.0 / np.sqrt(config.head_dim))
        self._ln_embedding = self._norm(params.ln_embedding_weight, params.ln_embedding_bias)
        self._ln_final = self._norm(params.ln_final_weight, params.ln_final_bias)
        store = self._open_store(params.source)
        try:
            self._pack(params, store.take)
            store.finish()
        except BaseException:
            store.abandon()
            raise

    def _open_store(self, source: Source | None) -> Store:
        facts = {"dtypes": f"{self._variable} {self.dtype}", "tied": self.config.tie_word_embeddings}
        shapes = [w.hf_shape(self.config) for _, w in keys(self.config)]
        sizes = [panel_bytes(*shape, self.dtype) for shape in shapes if len(shape) == 2]
        return open_store(source, facts | self.config.sizes | {"L": self.config.num_layers}, sizes)

    def _pack(self, params: Params, take: Any) -> None:
        self._layers = [self._pack_layer(layer, take) for layer in params.layers]
        self._embedding = pack(params.word_embedding, None, self.dtype, self._variable, take)
        self._head = self._embedding
        if params.lm_head is not None:
            self._head = pack(params.lm_head, None, self.dtype, self._variable, take)

    def _norm(self, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        epsilon = np.float32(self.config.layer_norm_epsilon)
        return vector(weight, self.dtype, self._variable), vector(bias, self.dtype, self._variable), epsilon

    def _pack_layer(self, layer: LayerParams, take: Any) -> _Layer:
        d, f = self.config.hidden_dim, self.config.intermediate_dim

        def linear(weight: Any, bias: Any, n: int, k: int) -> Linear:
            return pack(weight.reshape(n, k), bias, self.dtype, self._variable, take)

        return _Layer(
            self._norm(layer.ln_attn_weight, layer.ln_attn_bias),
            linear(layer.qkv_weight, layer.qkv_bias, 3 * d, d),
            linear(layer.attn_out_weight, layer.attn_out_bias, d, d),
            self._norm(layer.ln_mlp_weight, layer.ln_mlp_bias),
            linear(layer.mlp_up_weight, layer.mlp_up_bias, f, d),
            linear(layer.mlp_down_weight, layer.mlp_down_bias, d, f),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        linears = [w for layer in self._layers for w in (layer.qkv, layer.dense, layer.up, layer.down)]
        heads = {id(w): w for w in (self._embedding, self._head)}
        return sum(w.panels.nbytes for w in [*linears, *heads.values()])

    # --- the interface ---------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int) -> Cache:
        layers, dtype = range(self.config.num_layers), self._form.cache
        keys, values = cache_elements(self.config, self.dtype, batch, capacity)
        return Cache(
            [aligned((keys,), dtype, zeroed=True) for _ in layers],
            [aligned((values,), dtype, zeroed=True) for _ in layers],
            batch,
            up(capacity),
        )

    def embed(self, token_ids: Any) -> Hidden:
        batch, time = token_ids.shape
        rows, width = self._new_rows(batch * time), self.config.hidden_dim
        table, ids = self._embedding, np.ascontiguousarray(token_ids).reshape(-1)
        norm.gather_rows(ids, table.panels, self._form.steps(width), self._form.paired, width, rows)
        self._norm_rows(rows, self._ln_embedding, rows)
        return Hidden(rows, batch, time)

    def attention_block(self, layer: int, x: Hidden, cache: Cache, step: Step) -> Hidden:
        config, weights, m = self.config, self._layers[layer], len(x.rows)
        d, threads = config.hidden_dim, thread_count()
        buffers = (
            self._buffer("normed", (m, up(d))),
            self._rows("rows", m, d),
            self._buffer("fused", (m, up(3 * d))),
            self._buffer("sums", (threads, SUMS)),
            self._buffer("work", (threads, workspace(config.head_dim))),
            self._buffer(
                "tiles", (threads, tile_elements(self._form.steps(config.head_dim), self._form.width)), self._form.rows
            ),
        )
        is_real = step.derive(("is_real", cache.capacity), lambda: _panels_of(step.key_is_real, cache.capacity))
        out = self._new_rows(m)
        attention_block(
            x.rows, x.batch, x.time, (config.num_heads, config.head_dim, self._form.steps(d)), weights.ln_attn,
            (weights.qkv.panels, weights.qkv.bias), (weights.dense.panels, weights.dense.bias),
            config.apply_residual_connection_post_layernorm, (cache.keys[layer], cache.values[layer], cache.capacity),
            step.start, is_real, self._slopes, self._scale, self._rounding, buffers, out, threads,
        )  # fmt: skip
        return Hidden(out, x.batch, x.time)

    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        config, weights, m = self.config, self._layers[layer], len(x.rows)
        d, f, threads = config.hidden_dim, config.intermediate_dim, thread_count()
        steps, inner_steps = self._form.steps(d), self._form.steps(f)
        buffers = (
            self._buffer("normed", (m, up(d))),
            self._rows("rows", m, d),
            self._buffer("sums", (threads, SUMS)),
            self._rows("inner", m, f),
        )
        out = self._new_rows(m)
        mlp_block(
            x.rows, m, (d, f, steps, inner_steps), weights.ln_mlp, (weights.up.panels, weights.up.bias),
            (weights.down.panels, weights.down.bias), config.apply_residual_connection_post_layernorm, self._rounding,
            buffers, out, threads,
        )  # fmt: skip
        return Hidden(out, x.batch, x.time)

    def final_norm(self, x: Hidden) -> Hidden:
        out = self._new_rows(len(x.rows))
        self._norm_rows(x.rows, self._ln_final, out)
        return Hidden(out, x.batch, x.time)

    def _norm_rows(self, x: Any, ln: tuple[Any, Any, Any], out: Any) -> None:
        m, d = len(x), self.config.hidden_dim
        norm.norm_rows(x, m, d, ln, out, self._rows("rows", m, d), self._rounding, thread_count())

    def logits(self, x: Hidden, last_only: bool) -> Any:
        d, v, threads = self.config.hidden_dim, self.config.vocabulary_size, thread_count()
        hidden = x.rows.reshape(x.batch, x.time, up(d))
        hidden = np.ascontiguousarray(hidden[:, -1:] if last_only else hidden).reshape(-1, up(d))
        m, steps = len(hidden), self._form.steps(d)
        rows, out = self._rows("rows", m, d), aligned((m, up(v)), np.float32)
        put_rows(hidden, m, d, rows)
        sums = self._buffer("sums", (threads, SUMS))
        product(rows, m, self._head.panels, v, steps, self._head.bias, PLAIN, hidden, FLOAT32, out, rows, sums, threads)
        return out.reshape(x.batch, min(x.time, 1) if last_only else x.time, up(v))[:, :, :v]

    def to_host(self, x: Hidden) -> Any:
        d = self.config.hidden_dim
        return np.ascontiguousarray(x.rows[:, :d]).reshape(x.batch, x.time, d).astype(self.dtype)

    def from_host(self, x: Any) -> Hidden:
        batch, time, d = x.shape
        rows = self._new_rows(batch * time)
        rows[:, :d] = np.asarray(x).astype(self.dtype).reshape(-1, d)
        return Hidden(rows, batch, time)

    # --- memory ----------------------------------------------------------------------------------

    def _new_rows(self, m: int) -> Any:
        return aligned((m, up(self.config.hidden_dim)), np.float32)

    def _rows(self, name: str, m: int, k: int) -> Any:
        """Scratch space for m rows (M, K) of a product."""
        return self._buffer(name, (self._form.row_elements(m, k),), self._form.rows)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Scratch space of this thread, kept from call to call and grown when needed."""
        held: dict[str, Any] = self._local.__dict__
        size = math.prod(shape)
        if name not in held or held[name].size < size:
            held[name] = aligned((size,), dtype)
        return held[name][:size].reshape(shape)


class NumbaBackend:
    """BLOOM on the CPU."""

    name = "numba"
    api_version = API_VERSION

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:  # noqa: ARG002
        return None

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> NumbaPrepared | DoublePrepared:
        if policy.compute_dtype == np.float64:
            return DoublePrepared(params, config, policy)
        return NumbaPrepared(params, config, policy)

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        return memory(config, policy, batch, length)

    def loss_and_gradients(
        self, params: Params, config: BloomConfig, token_ids: Any, targets: Any, document: Any, trainable: Any, rng: Any
    ) -> tuple[float, dict[str, Any]]:
        if params.word_embedding.dtype == np.float64:
            hint = "train with backend 'numpy', or in float32"
            raise Unsupported(describe("dtype", "float32 or narrower for training", "float64", hint))
        from accel.numba_cpu.training.step import loss_and_gradients

        return loss_and_gradients(params, config, token_ids, targets, document, trainable, rng)

    def is_compiled(self, policy: DTypePolicy) -> bool:
        return is_marked(policy.compute_dtype.name)

    def compile(self, policy: DTypePolicy) -> None:
        """Runs a model of a few weights: kernels are compiled for dtypes, not for sizes."""
        config = BloomConfig(vocabulary_size=2, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=2)
        prepared = self.prepare(init_params(config, 0, policy.variable_dtype), config, policy)
        cache, facts = prepared.new_cache(1, 1), Step.at(0, np.ones((1, 1), np.bool_))
        x = prepared.embed(np.zeros((1, 1), np.int64))
        x = prepared.mlp_block(0, prepared.attention_block(0, x, cache, facts))
        prepared.logits(prepared.final_norm(x), True)
        mark(policy.compute_dtype.name)


def _panels_of(key_is_real: Bool[Array, "B S"], capacity: int) -> tuple[Bool[Array, "B P"], Bool[Array, "B N"]]:
    """Which columns of the whole cache are real, and which panels of NR columns are so throughout."""
    is_real = np.zeros((len(key_is_real), capacity), np.bool_)
    is_real[:, : key_is_real.shape[1]] = key_is_real
    return is_real, is_real.reshape(len(is_real), capacity // NR, NR).all(-1)
