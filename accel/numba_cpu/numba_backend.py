"""The Numba backend: bloomref's backend interface over the kernels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from accel.numba_cpu import cache_copy, norm, vocabulary
from accel.numba_cpu.attention import scratch_floats, scratch_operands
from accel.numba_cpu.blocks import attention_block, mlp_block
from accel.numba_cpu.buffers import Buffers
from accel.numba_cpu.float64 import DoublePrepared
from accel.numba_cpu.isa import NR, thread_count
from accel.numba_cpu.jit_cache import is_marked, mark
from accel.numba_cpu.linear import BFLOAT16, FLOAT16, FLOAT32, PLAIN, SUMS, product, put_rows
from accel.numba_cpu.memory import cache_elements, memory
from accel.numba_cpu.packed_cache import Store, open_store
from accel.numba_cpu.parallel import enters_kernels
from accel.numba_cpu.sharing import Sharing
from accel.numba_cpu.structs import (
    AttentionScratch,
    AttentionWeights,
    CacheView,
    CallShape,
    Epilogue,
    MLPWeights,
    ModelConstants,
    Norm,
    PackedRows,
    Projection,
    Workspace,
)
from accel.numba_cpu.weight_packing import FORMATS, Take, aligned, pack, panel_bytes, up, vector
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import Unsupported, describe
from bloomref.params import LayerParams, Params, Source, init_params, keys
from bloomref.runtime.backend import (
    API_VERSION,
    Backend,
    Declaration,
    Memory,
    Prepared,
    Step,
    SupportsCompilation,
    SupportsGradients,
    SupportsMemoryEstimate,
)
from bloomref.shapes import Array, Bool, Float, Int

_ROUNDING = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden states (B T, D rounded up to whole panels): float32 numbers that the compute dtype can hold."""

    rows: Float[Array, "M _"]
    batch: int
    time: int


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values in the layout of `attention`, one flat array of each a layer; `capacity` is a multiple of NR."""

    keys: list[Array]
    values: list[Array]
    batch: int
    heads: int
    capacity: int

    def select(self, rows: Int[Array, " N"]) -> "Cache":
        def take(flat: Array) -> Array:
            width = flat.size // max(self.batch, 1)
            out = aligned((len(rows), width), flat.dtype)
            return np.take(flat.reshape(self.batch, width), rows, 0, out).reshape(-1)

        return replace(self, keys=[take(k) for k in self.keys], values=[take(v) for v in self.values], batch=len(rows))

    def rearranged(self, rows: Int[Array, " N"], start: int, stop: int) -> "Cache":
        panels = slice(start // NR, -(-stop // NR))
        lines = slice(start // 2 * 2 * NR, -(-stop // 2) * 2 * NR)  # two positions may be a pair
        for flat in self.keys:
            cache_copy.move(flat.reshape(self.batch, self.heads, self.capacity // NR, -1), rows, panels)
        for flat in self.values:
            cache_copy.move(flat.reshape(self.batch, -1, self.capacity * NR), rows, lines)
        keys, values = (
            [flat[: flat.size // self.batch * len(rows)] for flat in arrays] for arrays in (self.keys, self.values)
        )
        return replace(self, keys=keys, values=values, batch=len(rows))


class NumbaPrepared(Prepared):
    """One model's weights, packed once; the same copy serves long prompts and single tokens."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.config = config
        self.dtype = policy.compute_dtype
        self._form = FORMATS[self.dtype]
        self._variable = policy.variable_dtype
        self._buffers = Buffers()
        self._sharing = Sharing(config, self.dtype.itemsize)
        rounding, post_norm = _ROUNDING[self.dtype.name], config.apply_residual_connection_post_layernorm
        self._model = ModelConstants(post_norm, rounding, alibi.slopes(config.num_heads))
        self._norm_embedding = self._norm(params.ln_embedding_weight, params.ln_embedding_bias)
        self._norm_final = self._norm(params.ln_final_weight, params.ln_final_bias)
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

    def _pack(self, params: Params, take: Take) -> None:
        self._layers = [self._pack_layer(layer, take) for layer in params.layers]
        self._embedding = pack(params.word_embedding, None, self.dtype, self._variable, take)
        self._head = self._embedding
        if params.lm_head is not None:
            self._head = pack(params.lm_head, None, self.dtype, self._variable, take)

    def _norm(self, weight: Float[Array, " D"], bias: Float[Array, " D"]) -> Norm:
        epsilon = np.float32(self.config.layer_norm_epsilon)
        return Norm(vector(weight, self.dtype, self._variable), vector(bias, self.dtype, self._variable), epsilon)

    def _pack_layer(self, layer: LayerParams, take: Take) -> tuple[AttentionWeights, MLPWeights]:
        d, f = self.config.hidden_dim, self.config.intermediate_dim

        def packed(weight: Array, bias: Array, n: int, k: int) -> Projection:
            return pack(weight.reshape(n, k), bias, self.dtype, self._variable, take)

        attention = AttentionWeights(
            self._norm(layer.ln_attn_weight, layer.ln_attn_bias),
            packed(layer.qkv_weight, layer.qkv_bias, 3 * d, d),
            packed(layer.attn_out_weight, layer.attn_out_bias, d, d),
        )
        mlp = MLPWeights(
            self._norm(layer.ln_mlp_weight, layer.ln_mlp_bias),
            packed(layer.mlp_up_weight, layer.mlp_up_bias, f, d),
            packed(layer.mlp_down_weight, layer.mlp_down_bias, d, f),
        )
        return attention, mlp

    # --- the interface ---------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int) -> Cache:
        layers, dtype = range(self.config.num_layers), self._form.cache
        keys, values = cache_elements(self.config, self.dtype, batch, capacity)
        return Cache(
            [aligned((keys,), dtype, zeroed=True) for _ in layers],
            [aligned((values,), dtype, zeroed=True) for _ in layers],
            batch,
            self.config.num_heads,
            up(capacity),
        )

    @enters_kernels
    def embed(self, token_ids: Int[Array, "B T"]) -> Hidden:
        batch, time = token_ids.shape
        rows, ids = self._new_rows(batch * time), np.ascontiguousarray(token_ids).reshape(-1)
        norm.gather_rows(ids, self._embedding, self._form.paired, self.config.hidden_dim, rows)
        self._norm_rows(rows, self._norm_embedding, rows)
        return Hidden(rows, batch, time)

    @enters_kernels
    def attention_block(self, layer: int, x: Hidden, cache: Cache, step: Step) -> Hidden:
        is_real, is_whole = step.derive(
            ("is_real", cache.capacity), lambda: _panels_of(step.key_is_real, cache.capacity)
        )
        shape = CallShape(x.batch, x.time, step.start, self.config.num_heads, self.config.head_dim)
        view = CacheView(cache.keys[layer], cache.values[layer], cache.capacity, is_real, is_whole)
        out = self._new_rows(len(x.rows))
        threads = self._sharing.attention(x.batch, x.time, step.start + x.time)
        workspace = self._workspace(len(x.rows), threads)
        attention_block(x.rows, shape, self._layers[layer][0], self._model, view, workspace, out)
        return Hidden(out, x.batch, x.time)

    @enters_kernels
    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        m = len(x.rows)
        out = self._new_rows(m)
        workspace = self._workspace(m, self._sharing.mlp(m))
        mlp_block(x.rows, m, self._layers[layer][1], self._model, workspace, out)
        return Hidden(out, x.batch, x.time)

    @enters_kernels
    def final_norm(self, x: Hidden) -> Hidden:
        out = self._new_rows(len(x.rows))
        self._norm_rows(x.rows, self._norm_final, out)
        return Hidden(out, x.batch, x.time)

    @enters_kernels
    def logits(self, x: Hidden, last_only: bool) -> Float[Array, "B _ V"]:
        d, v = self.config.hidden_dim, self.config.vocabulary_size
        hidden = x.rows.reshape(x.batch, x.time, up(d))
        hidden = np.ascontiguousarray(hidden[:, -1:] if last_only else hidden).reshape(-1, up(d))
        m = len(hidden)
        rows, out = PackedRows(self._rows("rows", m, d), m), aligned((m, up(v)), np.float32)
        put_rows(hidden, d, rows)
        product(rows, self._head, Epilogue(PLAIN, hidden, FLOAT32), out, rows, self._sums(self._sharing.logits(m)))
        return out.reshape(x.batch, min(x.time, 1) if last_only else x.time, up(v))[:, :, :v]

    @enters_kernels
    def exponential_sums(self, row: Float[Array, " V"], temperature: float) -> Float[Array, " N"]:
        return vocabulary.exponential_sums(row, float(temperature), thread_count())

    def to_host(self, x: Hidden) -> Float[Array, "B T D"]:
        d = self.config.hidden_dim
        return np.ascontiguousarray(x.rows[:, :d]).reshape(x.batch, x.time, d).astype(self.dtype)

    def from_host(self, x: Float[Array, "B T D"]) -> Hidden:
        batch, time, d = x.shape
        rows = self._new_rows(batch * time)
        rows[:, :d] = np.asarray(x).astype(self.dtype).reshape(-1, d)
        return Hidden(rows, batch, time)

    def copy_from_cache(
        self, cache: Cache, row: int, stop: int
    ) -> tuple[Float[Array, "L H S K"], Float[Array, "L H S K"]]:
        layout, width = self._layout(cache), self.config.head_dim
        keys = [cache_copy.read(layout.keys(flat, row), stop, width) for flat in cache.keys]
        values = [cache_copy.read(layout.values(flat, row), stop, width) for flat in cache.values]
        return np.stack(keys).view(self.dtype), np.stack(values).view(self.dtype)

    def copy_to_cache(
        self, cache: Cache, row: int, start: int, keys: Float[Array, "L H S K"], values: Float[Array, "L H S K"]
    ) -> None:
        layout = self._layout(cache)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            cache_copy.write(layout.keys(cache.keys[i], row), start, key.view(self._form.cache))
            cache_copy.write(layout.values(cache.values[i], row), start, value.view(self._form.cache))

    def _layout(self, cache: Cache) -> cache_copy.Layout:
        config = self.config
        return cache_copy.Layout(self._form, cache.batch, config.num_heads, cache.capacity, config.head_dim)

    # --- memory ----------------------------------------------------------------------------------

    def _norm_rows(self, x: Float[Array, "M _"], weights: Norm, out: Float[Array, "M _"]) -> None:
        rows = PackedRows(self._rows("rows", len(x), self.config.hidden_dim), len(x))
        norm.norm_rows(x, weights, out, rows, self._model.rounding, 1)

    def _new_rows(self, m: int) -> Float[Array, "M _"]:
        return aligned((m, up(self.config.hidden_dim)), np.float32)

    def _rows(self, name: str, m: int, k: int) -> Array:
        """A buffer for packed rows (M, K)."""
        return self._buffers.take(name, (self._form.row_elements(m, k),), self._form.rows)

    def _sums(self, threads: int) -> Float[Array, "N _"]:
        return self._buffers.take("sums", (threads, SUMS))

    def _workspace(self, m: int, threads: int) -> Workspace:
        return self._buffers.workspace(m, threads, lambda: self._new_workspace(m, threads))

    def _new_workspace(self, m: int, threads: int) -> Workspace:
        d, k, take = self.config.hidden_dim, self.config.head_dim, self._buffers.take
        operands = scratch_operands(self._form.steps(k), self._form.width)
        return Workspace(
            take("normed", (m, up(d))),
            self._rows("rows", m, d),
            self._rows("inner", m, self.config.intermediate_dim),
            take("fused", (m, up(3 * d))),
            self._sums(threads),
            AttentionScratch(
                take("floats", (threads, scratch_floats(k))), take("operands", (threads, operands), self._form.rows)
            ),
        )


NARROW = ("float32", "bfloat16", "float16")
"""Dtypes of kernels of its own. float64 runs in NumPy's."""


class NumbaBackend(Backend, SupportsMemoryEstimate, SupportsGradients, SupportsCompilation):
    """BLOOM on the CPU."""

    name = "numba"
    api_version = API_VERSION
    declaration = Declaration(  # products of bfloat16 have operands of bfloat16
        gradients=NARROW, bit_equal=NARROW, packages=("numba", "llvmlite", "numpy")
    )

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:  # noqa: ARG002
        return None

    @enters_kernels
    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> NumbaPrepared | DoublePrepared:
        if policy.compute_dtype == np.float64:
            return DoublePrepared(params, config, policy)
        return NumbaPrepared(params, config, policy)

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        return memory(config, policy, batch, length)

    @enters_kernels
    def loss_and_gradients(
        self,
        params: Params,
        config: BloomConfig,
        token_ids: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        document: Int[Array, "B T"],
        trainable: Callable[[str], bool],
        rng: np.random.Generator | None,
    ) -> tuple[float, dict[str, Array]]:
        if params.word_embedding.dtype == np.float64:
            hint = "train with backend 'numpy', or in float32"
            raise Unsupported(describe("dtype", "float32 or narrower for training", "float64", hint))
        from accel.numba_cpu.training.step import loss_and_gradients

        return loss_and_gradients(params, config, token_ids, targets, document, trainable, rng)

    def is_compiled(self, policy: DTypePolicy) -> bool:
        return is_marked(policy.compute_dtype.name)

    def compile(self, policy: DTypePolicy) -> None:
        """Run a model of a few weights: kernels are compiled for dtypes, not for sizes."""
        config = BloomConfig(vocabulary_size=2, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=2)
        prepared = self.prepare(init_params(config, 0, policy.variable_dtype), config, policy)
        cache, facts = prepared.new_cache(1, 1), Step.at(0, np.ones((1, 1), np.bool_))
        x = prepared.embed(np.zeros((1, 1), np.int64))
        x = prepared.mlp_block(0, prepared.attention_block(0, x, cache, facts))
        prepared.exponential_sums(prepared.logits(prepared.final_norm(x), True)[0, 0], 1.0)
        mark(policy.compute_dtype.name)


def _panels_of(key_is_real: Bool[Array, "B S"], capacity: int) -> tuple[Bool[Array, "B P"], Bool[Array, "B N"]]:
    """Cache positions that hold tokens, and panels of NR positions that hold nothing but tokens."""
    is_real = np.zeros((len(key_is_real), capacity), np.bool_)
    is_real[:, : key_is_real.shape[1]] = key_is_real
    return is_real, is_real.reshape(len(is_real), capacity // NR, NR).all(-1)
