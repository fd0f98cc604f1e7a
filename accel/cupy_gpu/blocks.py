"""Which kernels and products make up a block. docs/cupy.md shows the three paths.

Up to FEW_ROWS rows go through matrix-vector kernels: each weight is read once, everything in between is float32. Up to
TENSOR_ROWS rows of a 16-bit dtype are multiplied by kernels for tensor cores. What those do not take goes in groups of MATVEC_ROWS
through the first path if it is a decoding step, and through a library if it is a prompt, as more rows and float64 do, with row
kernels around it. Before tensor cores and libraries, inputs of products are rounded to the compute dtype.

Rows are (rows, D), row b T + t of a piece of B sequences and T positions. Nothing here remembers anything.
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
Space = Callable[[str, tuple[int, int], Any], Array]
"""Where a temporary (rows, width) of this name and dtype goes; it is not needed any more when the next one of the name is asked for."""


@dataclass(frozen=True, eq=False)
class AttentionArgs:
    """What the positions of a piece attend to.

    Args:
        start: int32 (1,), the column of the first position.
        is_real: uint8 (B, P), or None where every visible column is.
        partials, arrival_counter: a cache's space for the parts of a decoding step.
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
    """What the head leaves beside the scores.

    Args:
        forbidden: uint8 (V,), not zero for tokens that do not count; None where all do.
        scores, tokens: float32 and int32 (rows, parts), the best of each part of the tokens.
        broken: int32 (1,), set to 1 where a score is NaN or infinite; None asks for nothing of all this.
    """

    forbidden: Array | None
    scores: Array | None
    tokens: Array | None
    broken: Array | None


LOGITS_ONLY = HeadOutputs(None, None, None, None)


class Blocks:
    """The blocks of one config in one dtype on one device; the weights are arguments.

    Args:
        space: of temporaries; fresh memory for each unless given.
    """

    def __init__(
        self, device: Device, config: BloomConfig, dtype: Any, slopes: Array, space: Space | None = None
    ) -> None:
        self.device, self.config = device, config
        self._space = space or (lambda _, shape, dtype: device.empty(shape, dtype))
        self.dtype, self.name = dtype, dtype.name
        self.wide = accumulation_dtype(dtype)
        self.slopes = slopes
        self.scale = 1.0 / float(np.sqrt(config.head_dim))
        self.d, self.f = config.hidden_dim, config.intermediate_dim

    # --- one kernel each -------------------------------------------------------------------------

    def embed(self, ids: Array, table: Array, norm: Norm) -> Array:
        """Look-up and embedding norm: int32 (rows,) to (rows, D)."""
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
        """(rows, V) in the accumulation dtype, of final hidden states of `time` positions a sequence."""
        out = self.wide_rows("scores", len(x), head.shape[0])
        if self.uses_cublas(len(x), time):
            self.device.matmul(x, head, out)
        elif self.uses_tensor_cores(len(x)):
            self._head_tensor_cores(x, head, out, None)
        else:
            self._head(x, _NO_NORM, head, out, LOGITS_ONLY)
        return out

    def normed_scores(self, x: Array, norm: Norm, head: Array, outputs: HeadOutputs) -> Array:
        """`scores` of `norm(x)` without a library, and what is outputs on the way; by tiles, that is whether any is broken."""
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
        """Layer norm ... residual; writes the piece's keys and values."""
        if self.uses_tensor_cores(len(x)):
            self._attention_tensor_cores(layer, x, args, out)
        elif self.uses_cublas(len(x), args.time) or args.time > 1:
            self._attention_cublas(layer, x, args, out)
        else:
            self._attention_gemv(layer, x, args, out)

    def mlp(self, layer: Layer, x: Array, time: int, out: Array) -> None:
        """Layer norm ... residual, of `time` positions a sequence."""
        if self.uses_tensor_cores(len(x)):
            self._mlp_tensor_cores(layer, x, out)
        elif self.uses_cublas(len(x), time):
            self._mlp_cublas(layer, x, out)
        else:
            self._mlp_gemv(layer, x, out)

    def uses_cublas(self, rows: int, time: int) -> bool:
        """Whether a library multiplies so many rows, `time` positions a sequence. Its calls are not captured.

        A step (`time` is 1) reads the weights once a group of rows, and is one graph; a prompt, which would not be one anyway, has
        a library read them once.
        """
        if self.name == "float64" or rows > TENSOR_ROWS:
            return True
        return time > 1 and rows > MATVEC_ROWS and not self.uses_tensor_cores(rows)

    def uses_tensor_cores(self, rows: int) -> bool:
        """Whether so many rows go through the kernels for tensor cores."""
        takes = launches.supports_tensor_cores(self.config, self.name, self.device.arch)
        return takes and FEW_ROWS < rows <= TENSOR_ROWS

    # --- few rows --------------------------------------------------------------------------------

    def _attention_gemv(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        query, context = (self.wide_rows(name, len(x), self.d) for name in ("query", "context"))
        launch = launches.qkv_matvec(self.name, len(x), self.d, 3 * self.d, self.device.sms)
        self.device.launch(
            launch, x, *self._norm(layer.ln_attn), layer.qkv.weight, layer.qkv.weight.shape[1], layer.qkv.bias, query,
            args.cache.keys, args.cache.values, args.start, len(x), self.d, args.time, *self._cache_shape(args),
            launch.splits,
        )  # fmt: skip
        self._attend_decode(query, args, context)
        self._residual_matvec(context, layer.dense, x, layer.ln_attn, out)

    def _mlp_gemv(self, layer: Layer, x: Array, out: Array) -> None:
        inner = self.wide_rows("inner", len(x), self.f)
        launch = launches.gelu_matvec(self.name, len(x), self.d, self.f, self.device.sms)
        self.device.launch(
            launch, x, *self._norm(layer.ln_mlp), layer.up.weight, layer.up.weight.shape[1], layer.up.bias, inner,
            len(x), self.d, self.f, launch.splits,
        )  # fmt: skip
        self._residual_matvec(inner, layer.down, x, layer.ln_mlp, out)

    def _residual_matvec(self, inner: Array, linear: Linear, x: Array, norm: Norm, out: Array) -> None:
        width = inner.shape[1]
        launch = launches.residual_matvec(self.name, len(x), width, self.d, self.device.sms)
        self.device.launch(
            launch, inner, linear.weight, linear.weight.shape[1], linear.bias, x, *self._residual(norm), out,
            len(x), width, self.d, launch.splits,
        )  # fmt: skip

    # --- some rows -------------------------------------------------------------------------------

    def _attention_tensor_cores(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        rows, query = len(x), self.wide_rows("query", len(x), self.d)
        launch = launches.qkv_tensor(self.name, rows, self.d, 3 * self.d, self.device.sms)
        self.device.launch(
            launch, self.norm(x, layer.ln_attn), layer.qkv.weight, layer.qkv.weight.shape[1], layer.qkv.bias, query,
            args.cache.keys, args.cache.values, args.start, rows, self.d, args.time, *self._cache_shape(args),
            launch.splits,
        )  # fmt: skip
        context = self.narrow_rows("context", rows, self.d)
        self._attend(query, args, context)
        self._residual_tensor_cores(context, layer.dense, x, out)

    def _mlp_tensor_cores(self, layer: Layer, x: Array, out: Array) -> None:
        rows, inner = len(x), self.narrow_rows("inner", len(x), self.f)
        launch = launches.gelu_tensor(self.name, rows, self.d, self.f, self.device.sms)
        self.device.launch(
            launch, self.norm(x, layer.ln_mlp), layer.up.weight, layer.up.weight.shape[1], layer.up.bias, inner, rows,
            self.d, self.f, launch.splits,
        )  # fmt: skip
        self._residual_tensor_cores(inner, layer.down, x, out)

    def _residual_tensor_cores(self, inner: Array, linear: Linear, x: Array, out: Array) -> None:
        rows, width = inner.shape
        launch = launches.residual_tensor(self.name, rows, width, self.d, self.device.sms)
        self.device.launch(
            launch, inner, linear.weight, linear.weight.shape[1], linear.bias, x, out, rows, width, self.d,
            launch.splits,
        )  # fmt: skip

    def _head_tensor_cores(self, x: Array, head: Array, out: Array, broken: Array | None) -> None:
        launch = launches.head_tensor(self.name, len(x), self.d, len(head), self.device.sms)
        self.device.launch(
            launch, x, head, head.shape[1], out, broken, len(x), self.d, len(head), launch.splits
        )  # fmt: skip

    # --- many rows -------------------------------------------------------------------------------

    def _attention_cublas(self, layer: Layer, x: Array, args: AttentionArgs, out: Array) -> None:
        rows, query = len(x), self.wide_rows("query", len(x), self.d)
        fused = self._product(self.norm(x, layer.ln_attn), layer.qkv)
        self.device.launch(
            launches.qkv_split(self.name, rows), fused, layer.qkv.bias, query, args.cache.keys, args.cache.values,
            args.start, args.time, *self._cache_shape(args),
        )  # fmt: skip
        del fused  # its memory is free for what follows, which is queued behind its last reader
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
        """One position of each sequence; the keys are shared out to several blocks."""
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
        """Null pointers where the block's input is the residual, not its norm (MOD-3)."""
        return self._norm(norm if self.config.apply_residual_connection_post_layernorm else _NO_NORM)

    def narrow_rows(self, name: str, rows: int, width: int) -> Array:
        return self._space(name, (rows, width), self.dtype)

    def wide_rows(self, name: str, rows: int, width: int) -> Array:
        return self._space(name, (rows, width), self.wide)
