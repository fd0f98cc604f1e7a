"""Kernel sequence of a transformer block, on one of three paths (see docs/cupy.md).

- gemv: up to FEW_ROWS rows use matrix-vector kernels, which read each weight once and keep intermediate values in
  float32. A decoding step of up to TENSOR_ROWS rows that the second path does not support also uses them, in groups of
  MATVEC_ROWS.
- tensor cores: up to TENSOR_ROWS rows in a 16-bit dtype use fused tensor-core kernels.
- cuBLAS: more rows, float64, and prompts that the other paths do not support use GEMMs with row-wise kernels around
  them.

The tensor-core and cuBLAS paths round the inputs of products to the compute dtype.

Activations are (rows, D): row b T + t is position t of sequence b in a chunk of B sequences and T positions. Blocks are
stateless.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.cupy_gpu import launches
from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.device_cache import LayerCache
from accel.cupy_gpu.launches import FEW_ROWS, MATVEC_ROWS, TENSOR_ROWS, cache_stride
from accel.cupy_gpu.loading import Layer, Linear, Norm
from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype

_NO_NORM = Norm(None, None)
Allocate = Callable[[str, tuple[int, int], Any], Array]
"""Returns memory for the temporary of this name, shape (rows, width) and dtype.

The next call with the same name may reuse it.
"""


@dataclass(frozen=True, eq=False)
class AttentionArgs:
    """Arguments of attention over one layer's cache for a chunk of B sequences and T positions.

    Args:
        start: int32 (1,), column of the first position.
        is_real: uint8 (B, P), 0 in padding columns; None if every visible column is real.
        cache: Keys and values of the B sequences.
        partials, arrival_counter: The cache's buffers for split-K decoding attention (see attention.cu).
        batch, time: B and T.
        capacity: P, columns of the cache.
    """

    start: Array
    is_real: Array | None
    cache: LayerCache
    partials: Array
    arrival_counter: Array
    batch: int
    time: int
    capacity: int


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """Optional outputs of the LM head, in addition to the logits: the best tokens, and whether the logits are finite.

    Args:
        forbidden: uint8 (V,), nonzero for tokens that the best tokens must not include; None allows all.
        scores, tokens: float32 and int32 (rows, parts), the best allowed token of each part of the vocabulary.
        broken: int32 (1,), set to 1 if a logit is NaN or infinite. None disables all optional outputs.
    """

    forbidden: Array | None
    scores: Array | None
    tokens: Array | None
    broken: Array | None


LOGITS_ONLY = HeadOutputs(None, None, None, None)


class Blocks:
    """Transformer blocks of one config, in one dtype on one device. Weights are arguments of the methods.

    Args:
        dtype: The compute dtype.
        slopes: ALiBi slopes (H,) in the accumulation dtype, on the device.
        allocate: Allocator of temporaries. The default allocates fresh memory for each.
    """

    def __init__(
        self, device: Device, config: BloomConfig, dtype: Any, slopes: Array, allocate: Allocate | None = None
    ) -> None:
        self.device, self.config = device, config
        self._allocate = allocate or (lambda _, shape, dtype: device.empty(shape, dtype))
        self.dtype, self.name = dtype, dtype.name
        self.wide = accumulation_dtype(dtype)
        self.slopes = slopes
        self.scale = 1.0 / float(np.sqrt(config.head_dim))
        self.d, self.f = config.hidden_dim, config.intermediate_dim
        self._has_tensor_cores = launches.supports_tensor_cores(config, self.name, device.arch)

    # --- single kernels --------------------------------------------------------------------------

    def embed(self, ids: Array, table: Array, norm: Norm) -> Array:
        """Embedding lookup and embedding LayerNorm: int32 (rows,) to (rows, D)."""
        out = self.narrow_rows("embedded", len(ids), self.d)
        self.device.launch(
            launches.embed_norm(self.name, len(ids)), ids, table, table.shape[1], *self._norm(norm), out, self.d
        )
        return out

    def norm(self, x: Array, norm: Norm) -> Array:
        out = self.narrow_rows("normed", len(x), self.d)
        self.device.launch(launches.layer_norm(self.name, len(x)), x, *self._norm(norm), out, self.d)
        return out

    def scores(self, x: Array, head: Array, time: int) -> Array:
        """Return logits (rows, V) in the accumulation dtype, of final hidden states (rows, D).

        `time` is the number of positions per sequence.
        """
        out = self.wide_rows("scores", len(x), head.shape[0])
        if self.uses_cublas(len(x), time):
            self.device.matmul(x, head, out)
        elif self.uses_tensor_cores(len(x)):
            self._head_tensor_cores(x, head, out, None)
        else:
            self._head(x, _NO_NORM, head, out, LOGITS_ONLY)
        return out

    def normed_scores(self, x: Array, norm: Norm, head: Array, outputs: HeadOutputs) -> Array:
        """Return logits (rows, V) of `norm(x)` without cuBLAS, and write `outputs`.

        The tensor-core path only writes `broken`.
        """
        out = self.wide_rows("scores", len(x), head.shape[0])
        if self.uses_tensor_cores(len(x)):
            self._head_tensor_cores(self.norm(x, norm), head, out, outputs.broken)
        else:
            self._head(x, norm, head, out, outputs)
        return out

    def head_launch(self, rows: int, vocabulary: int) -> launches.Launch:
        return launches.head_matvec(self.name, rows, self.d, vocabulary, self.device.sms)

    def _head(self, x: Array, norm: Norm, head: Array, out: Array, outputs: HeadOutputs) -> None:
        launch = self.head_launch(len(x), len(head))
        self.device.launch(
            launch, x, *self._norm(norm), head, head.shape[1], out, outputs.forbidden, outputs.scores, outputs.tokens,
            outputs.broken, len(x), self.d, len(head), launch.splits,
        )  # fmt: skip

    # --- blocks ----------------------------------------------------------------------------------

    def attention(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        """Attention sub-block, from LayerNorm to residual: x (rows, D) to `out` (rows, D).

        Appends keys and values to the cache.
        """
        if self.uses_tensor_cores(len(x)):
            self._attention_tensor_cores(layer, x, args, out)
        elif self.uses_cublas(len(x), args.time) or args.time > 1:
            self._attention_cublas(layer, x, args, out)
        else:
            self._attention_gemv(layer, x, args, out)

    def mlp(self, layer: Layer, x: Array, time: int, out: Array, following: Array | None = None) -> None:
        """MLP sub-block, from LayerNorm to residual: x (rows, D) to `out` (rows, D).

        `time` is the number of positions per sequence. `following` is the weight of the product after this block, which
        is prefetched.
        """
        if self.uses_tensor_cores(len(x)):
            self._mlp_tensor_cores(layer, x, out, following)
        elif self.uses_cublas(len(x), time):
            self._mlp_cublas(layer, x, out)
        else:
            self._mlp_gemv(layer, x, out, following)

    def uses_cublas(self, rows: int, time: int) -> bool:
        """True if cuBLAS multiplies this many rows, `time` positions per sequence.

        CuPy cannot capture cuBLAS calls in a graph.

        A decoding step (`time` is 1) is one graph, so it reads the weights once per group of rows instead. A prompt is
        never a graph, so cuBLAS, which reads the weights once, is better for it.
        """
        if self.name == "float64" or rows > TENSOR_ROWS:
            return True
        return time > 1 and rows > MATVEC_ROWS and not self.uses_tensor_cores(rows)

    def uses_tensor_cores(self, rows: int) -> bool:
        """True if the fused tensor-core kernels multiply this many rows."""
        return self._has_tensor_cores and FEW_ROWS < rows <= TENSOR_ROWS

    # --- gemv path: few rows ---------------------------------------------------------------------

    def _attention_gemv(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        query, context = (self.wide_rows(name, len(x), self.d) for name in ("query", "context"))
        launch = launches.qkv_matvec(self.name, len(x), self.d, 3 * self.d, self.device.sms)
        self.device.launch(
            launch, x, *self._norm(layer.ln_attn), layer.qkv.weight, layer.qkv.weight.shape[1], layer.qkv.bias, query,
            args.cache.keys, args.cache.values, args.start, len(x), self.d, args.time, *self._cache_shape(args),
            launch.splits, *_prefetched(layer.dense.weight),
        )  # fmt: skip
        self._attend_decode(query, args, context)
        self._residual_matvec(context, layer.dense, x, layer.ln_attn, out, layer.up.weight)

    def _mlp_gemv(self, layer: Layer, x: Array, out: Array, following: Array | None) -> None:
        inner = self.wide_rows("inner", len(x), self.f)
        launch = launches.gelu_matvec(self.name, len(x), self.d, self.f, self.device.sms)
        self.device.launch(
            launch, x, *self._norm(layer.ln_mlp), layer.up.weight, layer.up.weight.shape[1], layer.up.bias, inner,
            len(x), self.d, self.f, launch.splits, *_prefetched(layer.down.weight),
        )  # fmt: skip
        self._residual_matvec(inner, layer.down, x, layer.ln_mlp, out, following)

    def _residual_matvec(
        self, inner: Array, linear: Linear, x: Array, norm: Norm, out: Array, following: Array | None
    ) -> None:
        width = inner.shape[1]
        launch = launches.residual_matvec(self.name, len(x), width, self.d, self.device.sms)
        self.device.launch(
            launch, inner, linear.weight, linear.weight.shape[1], linear.bias, x, *self._residual(norm), out,
            len(x), width, self.d, launch.splits, *_prefetched(following),
        )  # fmt: skip

    # --- tensor-core path: up to TENSOR_ROWS rows ------------------------------------------------

    def _attention_tensor_cores(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        rows, query = len(x), self.wide_rows("query", len(x), self.d)
        launch = launches.qkv_tensor(self.name, rows, self.d, 3 * self.d, self.device.sms)
        self.device.launch(
            launch, self.norm(x, layer.ln_attn), layer.qkv.weight, layer.qkv.weight.shape[1], layer.qkv.bias, query,
            args.cache.keys, args.cache.values, args.start, rows, self.d, args.time, *self._cache_shape(args),
            launch.splits, *_prefetched(layer.dense.weight),
        )  # fmt: skip
        context = self.narrow_rows("context", rows, self.d)
        self._attend(query, args, context)
        self._residual_tensor_cores(context, layer.dense, x, out, layer.up.weight)

    def _mlp_tensor_cores(self, layer: Layer, x: Array, out: Array, following: Array | None) -> None:
        rows, inner = len(x), self.narrow_rows("inner", len(x), self.f)
        launch = launches.gelu_tensor(self.name, rows, self.d, self.f, self.device.sms)
        self.device.launch(
            launch, self.norm(x, layer.ln_mlp), layer.up.weight, layer.up.weight.shape[1], layer.up.bias, inner, rows,
            self.d, self.f, launch.splits, *_prefetched(layer.down.weight),
        )  # fmt: skip
        self._residual_tensor_cores(inner, layer.down, x, out, following)

    def _residual_tensor_cores(
        self, inner: Array, linear: Linear, x: Array, out: Array, following: Array | None
    ) -> None:
        rows, width = inner.shape
        launch = launches.residual_tensor(self.name, rows, width, self.d, self.device.sms)
        self.device.launch(
            launch, inner, linear.weight, linear.weight.shape[1], linear.bias, x, out, rows, width, self.d,
            launch.splits, *_prefetched(following),
        )  # fmt: skip

    def _head_tensor_cores(self, x: Array, head: Array, out: Array, broken: Array | None) -> None:
        launch = launches.head_tensor(self.name, len(x), self.d, len(head), self.device.sms)
        self.device.launch(
            launch, x, head, head.shape[1], out, broken, len(x), self.d, len(head), launch.splits
        )  # fmt: skip

    # --- cuBLAS path: many rows ------------------------------------------------------------------

    def _attention_cublas(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        rows, query = len(x), self.wide_rows("query", len(x), self.d)
        fused = self._product(self.norm(x, layer.ln_attn), layer.qkv)
        self.device.launch(
            launches.qkv_split(self.name, rows), fused, layer.qkv.bias, query, args.cache.keys, args.cache.values,
            args.start, args.time, *self._cache_shape(args),
        )  # fmt: skip
        del fused  # later kernels of the same stream may reuse its memory
        context = self.narrow_rows("context", rows, self.d)
        self._attend(query, args, context)
        self._add_residual(self._product(context, layer.dense), layer.dense, x, layer.ln_attn, out)

    def _mlp_cublas(self, layer: Layer, x: Array, out: Array) -> None:
        up = self._product(self.norm(x, layer.ln_mlp), layer.up)
        inner = self.narrow_rows("inner", len(x), self.f)
        self.device.launch(launches.bias_gelu(self.name, len(x)), up, layer.up.bias, inner, self.f)
        del up
        self._add_residual(self._product(inner, layer.down), layer.down, x, layer.ln_mlp, out)

    def _product(self, x: Array, linear: Linear) -> Array:
        out = self.wide_rows("product", len(x), len(linear.weight))
        self.device.matmul(x, linear.weight, out)
        return out

    def _add_residual(self, y: Array, linear: Linear, x: Array, norm: Norm, out: Array) -> None:
        launch = launches.bias_residual(self.name, len(x))
        self.device.launch(launch, y, linear.bias, x, *self._residual(norm), out, self.d)

    # --- attention -------------------------------------------------------------------------------

    def _attend(self, query: Array, args: AttentionArgs, context: Array) -> None:
        attend = self._attend_decode if args.time == 1 and self.name != "float64" else self._attend_prefill
        attend(query, args, context)

    def _attend_decode(self, query: Array, args: AttentionArgs, context: Array) -> None:
        """Attention of one position per sequence, whose keys are split over several thread blocks."""
        config, device = self.config, self.device
        launch = launches.attention_decode(
            self.name,
            config.head_dim,
            args.batch,
            config.num_heads,
            args.capacity,
            device.sms,
            context.dtype.name,
        )
        self.device.launch(
            launch, query, args.cache.keys, args.cache.values, args.is_real, self.slopes, context, args.partials,
            args.arrival_counter, args.start, *self._cache_shape(args), self.scale,
        )  # fmt: skip

    def _attend_prefill(self, query: Array, args: AttentionArgs, context: Array) -> None:
        config, arch = self.config, self.device.arch
        shape = (self.name, config.head_dim, args.batch, config.num_heads, args.time)
        launch = launches.attention_rows(*shape)
        if launches.has_flash(self.name, config.head_dim, arch):
            launch = launches.attention_flash(*shape, arch)
        elif launches.has_tiled(self.name, config.head_dim, args.time, arch):
            launch = launches.attention_tiled(*shape[1:], arch)
        self.device.launch(
            launch, query, args.cache.keys, args.cache.values, args.is_real, self.slopes, context, args.start,
            args.time, *self._cache_shape(args), self.scale,
        )  # fmt: skip

    # --- arguments -------------------------------------------------------------------------------

    def _cache_shape(self, args: AttentionArgs) -> tuple[int, int, int, int]:
        width = self.config.head_dim
        return self.config.num_heads, width, cache_stride(width), args.capacity

    def _norm(self, norm: Norm) -> tuple[Array, Array, float]:
        return norm.weight, norm.bias, self.config.layer_norm_epsilon

    def _residual(self, norm: Norm) -> tuple[Array, Array, float]:
        """LayerNorm of the residual (MOD-3).

        Weight and bias are None, null pointers, for the pre-layernorm residual.
        """
        return self._norm(norm if self.config.apply_residual_connection_post_layernorm else _NO_NORM)

    def narrow_rows(self, name: str, rows: int, width: int) -> Array:
        return self._allocate(name, (rows, width), self.dtype)

    def wide_rows(self, name: str, rows: int, width: int) -> Array:
        return self._allocate(name, (rows, width), self.wide)


def _prefetched(weight: Array | None) -> tuple[Array | None, int]:
    """Arguments of a product that prefetches the weights of the next one."""
    return weight, 0 if weight is None else launches.prefetched_loads(weight.nbytes)
