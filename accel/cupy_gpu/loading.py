"""Weights on their way to the device: out of a file's map into a few pinned buffers, rounded there, copied while others fill.

A matrix is never whole in the memory of the host, unless somebody put it there before.
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
"""Each is filled by a thread of its own: one thread alone copies more slowly than a fast link takes it. To be tuned on a device."""
BUFFER_BYTES = 1 << 24
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, eq=False)
class Linear:
    """weight (N, weight_stride(K)) in the compute dtype, zeros beyond K; bias (N,) in the accumulation dtype."""

    weight: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Norm:
    """Both (D,), in the accumulation dtype."""

    gain: Array
    shift: Array


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
    """One model on a device. `head` is the embedding where they are tied."""

    embedding: Array
    ln_embedding: Norm
    layers: tuple[Layer, ...]
    ln_final: Norm
    head: Array


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows of a matrix, and where they go."""

    rows: Any
    target: Array


@dataclass(eq=False)
class _Buffer:
    """Pinned memory, and how to wait until it may be written."""

    memory: Any
    wait: Callable[[], None] = lambda: None


def load(device: Device, params: Params, config: BloomConfig, policy: DTypePolicy) -> Weights:
    """The weights on the device, rounded like every weight (NUM-1)."""
    loader = _Loader(device, policy)
    weights = loader.model(params, config)
    loader.run()
    return weights


class _Loader:
    """Allocates every array at once and remembers how to fill it; `run` fills them."""

    def __init__(self, device: Device, policy: DTypePolicy) -> None:
        self.device, self.policy = device, policy
        self.dtype = policy.compute_dtype
        self.pieces: list[_Piece] = []

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
        self.pieces += [_Piece(weight[row : row + step], target[row : row + step]) for row in range(0, n, step)]
        return target

    def rounded(self, values: Any) -> Any:
        return cast(cast(values, self.policy.variable_dtype), self.dtype)

    def run(self) -> None:
        """Buffers are filled by threads and sent in order; each is filled again when its bytes have arrived."""
        size = max(piece.target.nbytes for piece in self.pieces)
        buffers = [_Buffer(self.device.pinned(size)) for _ in range(min(BUFFERS, len(self.pieces)))]
        try:
            with ThreadPoolExecutor(len(buffers)) as threads:
                self._fill_and_send(buffers, threads)
        finally:
            for buffer in buffers:
                buffer.wait()  # before its memory is given back

    def _fill_and_send(self, buffers: list[_Buffer], threads: ThreadPoolExecutor) -> None:
        filling: deque[tuple[Future[Any], _Piece]] = deque()
        for piece, buffer in zip(self.pieces, cycle(buffers), strict=False):
            if len(filling) == len(buffers):
                self._send(*filling.popleft())
            filling.append((threads.submit(self._fill, buffer, piece), piece))
        while filling:
            self._send(*filling.popleft())

    def _fill(self, buffer: _Buffer, piece: _Piece) -> _Buffer:
        buffer.wait()
        n, k = piece.rows.shape
        filled = buffer.memory[: piece.target.nbytes].view(_BITS[self.dtype.itemsize]).reshape(n, -1)
        filled[:, :k] = self.rounded(piece.rows).view(filled.dtype)  # as bits: NumPy copies a foreign dtype one by one
        filled[:, k:] = 0
        return buffer

    def _send(self, filled: Future[_Buffer], piece: _Piece) -> None:
        buffer = filled.result()
        buffer.wait = self.device.send(buffer.memory[: piece.target.nbytes], piece.target)
