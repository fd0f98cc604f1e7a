"""The Numba backend behind bloomref's interface."""

import math
import threading
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from accel.numba_cpu import norm
from accel.numba_cpu.attention import BLOCK, workspace
from accel.numba_cpu.blocks import attention_block, mlp_block
from accel.numba_cpu.cpu import PANEL
from accel.numba_cpu.double import DoublePrepared
from accel.numba_cpu.linear import BFLOAT16, FLOAT16, FLOAT32, PLAIN, pack_rows, product
from accel.numba_cpu.packing import FORMATS, Linear, pack, vector
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import LayerParams, Params
from bloomref.runtime.backend import API_VERSION, Step

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
            return np.ascontiguousarray(flat.reshape(self.batch, flat.size // max(self.batch, 1))[rows]).reshape(-1)

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
        self._layers = [self._pack_layer(layer) for layer in params.layers]
        self._embedding = pack(params.word_embedding, None, self.dtype, self._variable)
        self._head = self._embedding
        if params.lm_head is not None:
            self._head = pack(params.lm_head, None, self.dtype, self._variable)

    def _norm(self, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        epsilon = np.float32(self.config.layer_norm_epsilon)
        return vector(weight, self.dtype, self._variable), vector(bias, self.dtype, self._variable), epsilon

    def _pack_layer(self, layer: LayerParams) -> _Layer:
        d, f = self.config.hidden_dim, self.config.intermediate_dim

        def linear(weight: Any, bias: Any, n: int, k: int) -> Linear:
            return pack(weight.reshape(n, k), bias, self.dtype, self._variable)

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
        config, columns = self.config, _up(self.config.head_dim)
        padded = (capacity + BLOCK - 1) // BLOCK * BLOCK
        rows = batch * config.num_heads * padded
        keys = [np.zeros(rows * config.head_dim, self._form.cache) for _ in range(config.num_layers)]
        values = [np.zeros(rows * columns, self._form.cache) for _ in range(config.num_layers)]
        return Cache(keys, values, batch, padded)

    def embed(self, token_ids: Any) -> Hidden:
        batch, time = token_ids.shape
        rows, width = self._new_rows(batch * time), self.config.hidden_dim
        table, ids = self._embedding, np.ascontiguousarray(token_ids).reshape(-1)
        norm.gather_rows(ids, table.panels, self._form.steps(width), self._form.paired, width, rows)
        norm.norm_rows(rows, len(rows), width, *self._ln_embedding, rows, self._rounding, numba.get_num_threads())
        return Hidden(rows, batch, time)

    def attention_block(self, layer: int, x: Hidden, cache: Cache, step: Step) -> Hidden:
        config, weights, m = self.config, self._layers[layer], len(x.rows)
        d, threads = config.hidden_dim, numba.get_num_threads()
        buffers = (
            self._buffer("normed", (m, _up(d))),
            self._buffer("packed", (m * self._form.steps(d),), self._form.rows),
            self._buffer("fused", (m, _up(3 * d))),
            self._buffer("context", (m, _up(d))),
            self._buffer("work", (threads, workspace(config.head_dim))),
        )
        if "real" not in step.derived:
            real = np.zeros((x.batch, cache.capacity), np.bool_)
            real[:, : step.key_is_real.shape[1]] = step.key_is_real
            step.derived["real"] = real.reshape(x.batch, cache.capacity // PANEL, PANEL)
        out = self._new_rows(m)
        attention_block(
            x.rows, x.batch, x.time, (config.num_heads, config.head_dim, self._form.steps(d)), weights.ln_attn,
            (weights.qkv.panels, weights.qkv.bias), (weights.dense.panels, weights.dense.bias),
            config.apply_residual_connection_post_layernorm, (cache.keys[layer], cache.values[layer], cache.capacity),
            step.start, step.derived["real"], self._slopes, self._scale, self._rounding, buffers, out, threads,
        )  # fmt: skip
        return Hidden(out, x.batch, x.time)

    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        config, weights, m = self.config, self._layers[layer], len(x.rows)
        d, f = config.hidden_dim, config.intermediate_dim
        steps, inner_steps = self._form.steps(d), self._form.steps(f)
        buffers = (
            self._buffer("normed", (m, _up(d))),
            self._buffer("packed", (m * steps,), self._form.rows),
            self._buffer("inner", (m, _up(f))),
            self._buffer("packed inner", (m * inner_steps,), self._form.rows),
        )
        out = self._new_rows(m)
        mlp_block(
            x.rows, m, (d, f, steps, inner_steps), weights.ln_mlp, (weights.up.panels, weights.up.bias),
            (weights.down.panels, weights.down.bias), config.apply_residual_connection_post_layernorm, self._rounding,
            buffers, out, numba.get_num_threads(),
        )  # fmt: skip
        return Hidden(out, x.batch, x.time)

    def final_norm(self, x: Hidden) -> Hidden:
        out = self._new_rows(len(x.rows))
        d = self.config.hidden_dim
        norm.norm_rows(x.rows, len(out), d, *self._ln_final, out, self._rounding, numba.get_num_threads())
        return Hidden(out, x.batch, x.time)

    def logits(self, x: Hidden, last_only: bool) -> Any:
        d, v, threads = self.config.hidden_dim, self.config.vocabulary_size, numba.get_num_threads()
        rows = x.rows.reshape(x.batch, x.time, _up(d))
        rows = np.ascontiguousarray(rows[:, -1:] if last_only else rows).reshape(-1, _up(d))
        steps = self._form.steps(d)
        packed = self._buffer("packed", (len(rows) * steps,), self._form.rows)
        out = np.empty((len(rows), _up(v)), np.float32)
        pack_rows(rows, len(rows), d, steps, packed, threads)
        product(packed, len(rows), self._head.panels, v, steps, self._head.bias, PLAIN, rows, FLOAT32, out, threads)
        return out.reshape(x.batch, min(x.time, 1) if last_only else x.time, _up(v))[:, :, :v]

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
        return np.empty((m, _up(self.config.hidden_dim)), np.float32)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Scratch space of this thread, kept from call to call and grown when needed."""
        held: dict[str, Any] = self._local.__dict__
        size = math.prod(shape)
        if name not in held or held[name].size < size:
            held[name] = np.empty(size, dtype)
        return held[name][:size].reshape(shape)


def _up(columns: int) -> int:
    """The next whole number of panels."""
    return (columns + PANEL - 1) // PANEL * PANEL


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
