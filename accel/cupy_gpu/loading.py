"""Loading of weights: threads round chunks of a memory-mapped file into pinned buffers for asynchronous copies.

No matrix is ever complete in host memory, unless the caller's parameters already are.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.launches import weight_stride
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype, cast
from bloomref.params import LayerParams, Params

BUFFERS = 8
"""Pinned buffers, each filled by a separate thread, because one thread is slower than a fast link.

To be tuned on a device.
"""
BUFFER_BYTES = 1 << 24
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, eq=False)
class Linear:
    """Weight (N, weight_stride(K)) in the compute dtype, with zeros beyond K; bias (N,) in the accumulation dtype."""

    weight: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm weight and bias (D,), in the accumulation dtype."""

    weight: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Layer:
    ln_attn: Norm
    qkv: Linear
    dense: Linear
    ln_mlp: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of one model on a device. `head` is the embedding if they are tied."""

    embedding: Array
    ln_embedding: Norm
    layers: tuple[Layer, ...]
    ln_final: Norm
    head: Array


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some rows of a matrix, and their destination on the device."""

    rows: Any
    target: Array


@dataclass(eq=False)
class _Buffer:
    """Pinned memory, with a function that waits until it may be overwritten."""

    memory: Any
    wait: Callable[[], None] = lambda: None


def load(device: Device, params: Params, config: BloomConfig, policy: DTypePolicy) -> Weights:
    """Copy a model's weights to the device, rounded to the policy's dtypes (NUM-1)."""
    loader = _Loader(device, policy)
    weights = loader.model(params, config)
    loader.run()
    return weights


class _Loader:
    """Allocates every array and collects the copies; `run` performs them."""

    def __init__(self, device: Device, policy: DTypePolicy) -> None:
        self.device, self.policy = device, policy
        self.dtype = policy.compute_dtype
        self.chunks: list[_Chunk] = []

    def model(self, params: Params, config: BloomConfig) -> Weights:
        embedding = self.matrix(params.word_embedding)
        return Weights(
            embedding,
            self.norm(params.ln_embedding_weight, params.ln_embedding_bias),
            tuple(self.layer(layer, config) for layer in params.layers),
            self.norm(params.ln_final_weight, params.ln_final_bias),
            embedding if params.lm_head is None else self.matrix(params.lm_head),
        )

    def layer(self, layer: LayerParams, config: BloomConfig) -> Layer:
        d = config.hidden_dim
        return Layer(
            self.norm(layer.ln_attn_weight, layer.ln_attn_bias),
            self.linear(layer.qkv_weight.reshape(-1, d), layer.qkv_bias),
            self.linear(layer.attn_out_weight.reshape(d, -1), layer.attn_out_bias),
            self.norm(layer.ln_mlp_weight, layer.ln_mlp_bias),
            self.linear(layer.mlp_up_weight, layer.mlp_up_bias),
            self.linear(layer.mlp_down_weight, layer.mlp_down_bias),
        )

    def linear(self, weight: Any, bias: Any) -> Linear:
        return Linear(self.matrix(weight), self.vector(bias))

    def norm(self, weight: Any, bias: Any) -> Norm:
        return Norm(self.vector(weight), self.vector(bias))

    def vector(self, values: Any) -> Array:
        values = cast(self.rounded(values.reshape(-1)), accumulation_dtype(self.dtype))
        return self.device.upload(np.ascontiguousarray(values))

    def matrix(self, weight: Any) -> Array:
        n, k = weight.shape
        target = self.device.empty((n, weight_stride(k)), self.dtype)
        step = max(1, BUFFER_BYTES // (weight_stride(k) * self.dtype.itemsize))
        self.chunks += [_Chunk(weight[row : row + step], target[row : row + step]) for row in range(0, n, step)]
        return target

    def rounded(self, values: Any) -> Any:
        return cast(cast(values, self.policy.variable_dtype), self.dtype)

    def run(self) -> None:
        """Fill buffers in threads and send them in order. A buffer is filled again when its copy is complete."""
        size = max(chunk.target.nbytes for chunk in self.chunks)
        buffers = [_Buffer(self.device.pinned(size)) for _ in range(min(BUFFERS, len(self.chunks)))]
        try:
            with ThreadPoolExecutor(len(buffers)) as threads:
                self._fill_and_send(buffers, threads)
        finally:
            for buffer in buffers:
                buffer.wait()  # before its memory is freed

    def _fill_and_send(self, buffers: list[_Buffer], threads: ThreadPoolExecutor) -> None:
        filling: deque[tuple[Future[Any], _Chunk]] = deque()
        for chunk, buffer in zip(self.chunks, cycle(buffers), strict=False):
            if len(filling) == len(buffers):
                self._send(*filling.popleft())
            filling.append((threads.submit(self._fill, buffer, chunk), chunk))
        while filling:
            self._send(*filling.popleft())

    def _fill(self, buffer: _Buffer, chunk: _Chunk) -> _Buffer:
        buffer.wait()
        n, k = chunk.rows.shape
        filled = buffer.memory[: chunk.target.nbytes].view(_BITS[self.dtype.itemsize]).reshape(n, -1)
        filled[:, :k] = self.rounded(chunk.rows).view(filled.dtype)  # as bits: NumPy copies foreign dtypes one by one
        filled[:, k:] = 0
        return buffer

    def _send(self, filled: Future[_Buffer], chunk: _Chunk) -> None:
        buffer = filled.result()
        buffer.wait = self.device.send(buffer.memory[: chunk.target.nbytes], chunk.target)
