"""Decoding steps over persistent buffers: the first run captures a CUDA graph, and every run replays it.

Tokens, position, mask and sampling state are in device memory, where every kernel reads them. So one graph serves every
position, and a chosen token feeds the next step without the host. The graph holds no references to arrays; the step
object does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from accel.cupy_gpu import launches
from accel.cupy_gpu.blocks import LOGITS_ONLY, AttentionArgs, Blocks, HeadOutputs
from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.device_cache import Cache
from accel.cupy_gpu.launches import DIGIT_VALUES, SCORE_DIGITS, TOP_K
from accel.cupy_gpu.loading import Weights
from bloomref.runtime.backend import Choice

_INT, _FLOAT, _BYTE, _SUM = (np.dtype(dtype) for dtype in (np.int32, np.float32, np.uint8, np.uint64))


class Workspace:
    """Buffers on a device, cached by (name, shape, dtype). An `Allocate` of blocks.py."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, tuple[int, ...], Any], Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        key = name, shape, dtype
        if key not in self._buffers:
            self._buffers[key] = self._device.empty(shape, dtype)
        return self._buffers[key]


class DecodeStep:
    """Decoding of one position of each row of a cache: 1 to TENSOR_ROWS rows in 16 or 32 bits, without cuBLAS.

    Args:
        workspace: Buffers of the temporaries. Steps that share it must not run concurrently.
        is_dense: True if no column is padding, so no mask is needed.
        graph: True to capture a CUDA graph; False to launch every step kernel by kernel.
    """

    def __init__(
        self, weights: Weights, blocks: Blocks, workspace: Workspace, cache: Cache, is_dense: bool, graph: bool
    ) -> None:
        device, batch = cache.device, cache.batch
        self.device, self.cache_layers, self.capacity = device, cache.layers, cache.capacity
        self._weights, self._blocks, self._workspace, self._graph = weights, blocks, workspace, graph
        self.ids, self.position = device.empty((batch,), _INT), device.empty((1,), _INT)
        self.is_real = None if is_dense else device.empty((batch, cache.capacity), _BYTE)
        self._host_is_real: Any = None
        self._hidden = [workspace(name, (batch, blocks.d), blocks.dtype) for name in ("attended", "hidden")]
        self._partials, self._arrival_counter, self.batch = cache.partials, cache.arrival_counter, batch
        self.scores = workspace("scores", (batch, len(weights.head)), blocks.wide)
        self._replay: Callable[[], None] | None = None

    def place(self, token_ids: Any, start: int, key_is_real: Any) -> None:
        """Write the inputs of the next run: tokens (B,) of column `start`, and key_is_real (B, start + 1).

        Columns after `start` are marked as real, for the tokens that later runs append.
        """
        self.device.write(self.ids, np.ascontiguousarray(token_ids, np.int32))
        self.device.write(self.position, np.array([start], np.int32))
        if self.is_real is not None:
            is_real = np.ones(self.is_real.shape, np.uint8)
            is_real[:, : start + 1] = key_is_real
            if self._host_is_real is None or not np.array_equal(is_real, self._host_is_real):
                self.device.write(self.is_real, is_real)
                self._host_is_real = is_real

    def run(self) -> None:
        """Queue one step."""
        if self._graph and self._replay is None:
            self._replay = self.device.capture(self._queue)
        (self._replay or self._queue)()

    def _queue(self) -> None:
        weights, blocks, (attended, hidden) = self._weights, self._blocks, self._hidden
        x = blocks.embed(self.ids, weights.embedding, weights.ln_embedding)
        following = [*(layer.qkv.weight for layer in weights.layers), weights.head][1:]  # none without layers
        for layer, cached, after in zip(weights.layers, self.cache_layers, following, strict=True):
            args = AttentionArgs(
                self.position, self.is_real, cached, self._partials, self._arrival_counter, self.batch, 1, self.capacity
            )
            blocks.attention(layer, x, args, attended)
            blocks.mlp(layer, attended, 1, hidden, after)
            x = hidden
        blocks.normed_scores(x, weights.ln_final, weights.head, self._head_outputs())

    def _head_outputs(self) -> HeadOutputs:
        return LOGITS_ONLY


class ChoosingStep(DecodeStep):
    """A decoding step that also chooses the next token on the device. The next run reads this token, one column later.

    Args:
        choice: Greedy or sampling options. Its seeds and its count of draws are arguments of `begin`.
        options: Arguments of DecodeStep.
    """

    def __init__(self, choice: Choice, **options: Any) -> None:
        super().__init__(**options)
        device, workspace, vocabulary = self.device, self._workspace, self.scores.shape[1]
        self._choice = choice
        self._truncation = 1.0 if choice.temperature is None else float(choice.temperature), float(choice.top_p)
        self.keys = device.empty((self.batch,), np.dtype(np.uint64))
        self.drawn, self.broken = device.empty((self.batch,), _INT), device.empty((1,), _INT)
        self.chosen = device.empty((self.batch, self.capacity), _INT)
        self.forbidden = None if choice.forbidden is None else device.upload(choice.forbidden.astype(np.uint8))
        self._lists_best = not self._blocks.uses_tensor_cores(self.batch)
        parts = self._blocks.head_launch(self.batch, vocabulary).grid[1] if self._lists_best else 0
        self._best = (
            workspace("best scores", (self.batch, parts), _FLOAT), workspace("best tokens", (self.batch, parts), _INT),
        )  # fmt: skip

    def begin(self, seeds: Any, drawn: int) -> None:
        """Write the seeds (B,) of the draws and the number of tokens that each row has already drawn."""
        self.device.write(self.keys, np.ascontiguousarray(seeds, np.uint64))
        self.device.write(self.drawn, np.full(self.batch, drawn, np.int32))
        self.device.write(self.broken, np.zeros(1, np.int32))

    def _head_outputs(self) -> HeadOutputs:
        return HeadOutputs(self.forbidden, *self._best, self.broken)

    def _queue(self) -> None:
        super()._queue()
        record = self.ids, self.chosen, self.drawn, self.position, self.capacity
        if self._choice.temperature is None and self._lists_best:
            launch = launches.choose_best(self.batch)
            self.device.launch(launch, *self._best, *record, self._best[0].shape[1])
        elif self._choice.temperature is None:
            self._choose_top(record, 1)
        elif self._choice.top_k is not None:
            self._choose_top(record, self._choice.top_k)
        else:
            self._choose_any(record)

    def _choose_any(self, record: tuple[Any, ...]) -> None:
        batch, vocabulary = self.scores.shape
        parts, launch = launches.any_parts(vocabulary), self.device.launch
        scores, best = (
            (self.scores, self.forbidden),
            (
                self._workspace("parts' scores", (batch, parts), _FLOAT),
                self._workspace("parts' tokens", (batch, parts), _INT),
            ),
        )
        by_digit = self._workspace("by digit", (batch, SCORE_DIGITS * DIGIT_VALUES), _SUM)
        kept = self._workspace("kept", (batch, parts), _SUM), self._workspace("lowest", (batch, 1), _INT)
        temperature, top_p = self._truncation
        launch(launches.any_best(batch, vocabulary), *scores, *best, by_digit, vocabulary)
        for digit in range(SCORE_DIGITS if top_p < 1 else 0):
            launch(
                launches.any_digits(batch, vocabulary), *scores, *best, by_digit, vocabulary, digit, temperature, top_p
            )
        launch(launches.any_sums(batch, vocabulary), *scores, *best, by_digit, *kept, vocabulary, temperature, top_p)
        launch(launches.choose_any(batch), *scores, self.keys, *best, *kept, *record, parts, vocabulary, temperature)

    def _choose_top(self, record: tuple[Any, ...], k: int) -> None:
        vocabulary = self.scores.shape[1]
        lists = launches.top_lists(vocabulary)
        parts, best = (
            (self._workspace(f"{name} scores", shape, _FLOAT), self._workspace(f"{name} tokens", shape, _INT))
            for name, shape in (("listed", (self.batch, lists, k)), ("top", (self.batch, k)))
        )
        self.device.launch(
            launches.top_parts(self.batch, vocabulary), self.scores, self.forbidden, *parts, vocabulary, k
        )
        self.device.launch(
            launches.choose_top(self.batch, k), *parts, self.keys, *best, *record, lists, k,
            *self._truncation,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class DecodingCache(Cache):
    """A cache with the decoding steps over it, which hold their buffers and graphs.

    Args:
        decode_steps: Decoding steps by (is_dense, graph).
        choosing_steps: Choosing steps by (is_dense, graph, temperature, top_k, top_p, bits of the forbidden tokens).
    """

    decode_steps: dict[tuple[bool, bool], DecodeStep] = field(default_factory=dict)
    choosing_steps: dict[tuple[bool, bool, float | None, int | None, float, bytes | None], ChoosingStep] = field(
        default_factory=dict
    )

    @cached_property
    def workspace(self) -> Workspace:
        """Temporaries of the steps, which never run concurrently."""
        return Workspace(self.device)


def chooses(choice: Choice) -> bool:
    """True if ChoosingStep supports this choice."""
    return choice.temperature is None or choice.top_k is None or choice.top_k <= TOP_K
