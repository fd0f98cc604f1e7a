"""`CupyPrepared`: one model on one device, with bloomref's backend interface.

It splits calls into chunks and copies to and from the host.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.cupy_gpu import memory
from accel.cupy_gpu.blocks import AttentionArgs, Blocks
from accel.cupy_gpu.decode import ChoosingStep, DecodeStep, DecodingCache, chooses
from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.launches import TENSOR_ROWS, TOP_K
from accel.cupy_gpu.lazy_cache import LazyCache
from accel.cupy_gpu.loading import load
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype
from bloomref.errors import BadWeights, Unsupported, invalid
from bloomref.params import Params
from bloomref.runtime.backend import Choice, Step
from bloomref.wider_dtypes import overflow_hint


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden states (B T, D) in the compute dtype, on the device. DLPack exports them as one (B, T, D) array."""

    rows: Array
    batch: int
    time: int

    @property
    def array(self) -> Array:
        """View of shape (B, T, D)."""
        return self.rows.reshape(self.batch, self.time, self.rows.shape[1])

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@dataclass(frozen=True)
class Chunk:
    """Positions of a call that are computed together: whole sequences, or a part of one sequence.

    Args:
        rows: Rows of the hidden states.
        sequences: Sequences of the batch.
        batch, time: Number of sequences, and of positions in each.
        number: Index of the chunk within its sequences.
    """

    rows: slice
    sequences: slice
    batch: int
    time: int
    number: int


def chunks(batch: int, time: int, limit: int) -> Iterator[Chunk]:
    """Split (batch, time) into chunks of at most `limit` positions. Chunks of a sequence come in order."""
    if batch * time == 0:
        return
    length, group = min(time, limit), max(1, limit // time)
    for first in range(0, batch, group):
        last = min(first + group, batch)
        for begin in range(0, time, length):
            end = min(begin + length, time)
            rows = slice(first * time + begin, (last - 1) * time + end)
            yield Chunk(rows, slice(first, last), last - first, end - begin, begin // length)


class CupyPrepared:
    """One model with its weights on the device. Methods queue work on the stream that is current when they are called.

    Attributes:
        graphs: True to capture decoding steps as CUDA graphs. False launches the same kernels one by one, for
            debugging.
    """

    graphs = True

    def __init__(self, device: Device, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.device, self.config, self.policy = device, config, policy
        self.dtype = policy.compute_dtype
        self._weights = load(device, params, config, policy)
        self._slopes = device.upload(alibi.slopes(config.num_heads, accumulation_dtype(self.dtype)))
        self._blocks = Blocks(device, config, self.dtype, self._slopes)

    # --- the interface ---------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int) -> LazyCache:
        """Return an empty cache of `batch` rows and `capacity` columns.

        Raises:
            Unsupported: The device has too little free memory. The message names what would fit.
        """
        memory.check_cache_fits(self.device, self.config, self.policy, batch, capacity)
        return LazyCache(DecodingCache.zeros(self.device, self.config, self.dtype, batch, capacity))

    def embed(self, token_ids: Any) -> Hidden:
        ids = self.device.upload(np.ascontiguousarray(token_ids, np.int32).reshape(-1))
        weights = self._weights
        return Hidden(self._blocks.embed(ids, weights.embedding, weights.ln_embedding), *token_ids.shape)

    def attention_block(self, layer: int, x: Hidden, cache: LazyCache, step: Step) -> Hidden:
        weights, (starts, is_real) = self._weights.layers[layer], self._columns(step, cache)
        state = cache.state()
        out = self._blocks.narrow_rows("attended", *x.rows.shape)
        for chunk in chunks(x.batch, x.time, memory.CHUNK_ROWS):
            args = AttentionArgs(
                starts[chunk.number : chunk.number + 1],
                None if is_real is None else is_real[chunk.sequences],
                state.layers[layer][chunk.sequences],
                state.partials,
                state.arrival_counter,
                chunk.batch,
                chunk.time,
                state.capacity,
            )
            self._blocks.attention(weights, x.rows[chunk.rows], args, out[chunk.rows])
        return Hidden(out, x.batch, x.time)

    def mlp_block(self, layer: int, x: Hidden) -> Hidden:
        weights, out = self._weights.layers[layer], self._blocks.narrow_rows("hidden", *x.rows.shape)
        for row in range(0, len(out), memory.CHUNK_ROWS):
            rows = slice(row, row + memory.CHUNK_ROWS)
            self._blocks.mlp(weights, x.rows[rows], x.time, out[rows])
        return Hidden(out, x.batch, x.time)

    def final_norm(self, x: Hidden) -> Hidden:
        return Hidden(self._blocks.norm(x.rows, self._weights.ln_final), x.batch, x.time)

    def logits(self, x: Hidden, last_only: bool) -> Any:
        rows, time = self._scored(x, last_only)
        out = np.empty((len(rows), self.config.vocabulary_size), self._blocks.wide)
        step = memory.logits_rows(self.config, self.policy)
        for row in range(0, len(out), step):
            out[row : row + step] = self.device.download(
                self._blocks.scores(rows[row : row + step], self._weights.head, time)
            )
        return out.reshape(self._scores_shape(x, last_only))

    def to_host(self, x: Hidden) -> Any:
        return self.device.download(x.array)

    def from_host(self, x: Any) -> Hidden:
        batch, time, width = x.shape
        return Hidden(self.device.upload(np.ascontiguousarray(x, self.dtype).reshape(batch * time, width)), batch, time)

    # --- whole decoding steps --------------------------------------------------------------------

    def step(self, token_ids: Any, cache: LazyCache, step: Step) -> Any:
        """Return logits (B, V) on the host.

        Steps that use cuBLAS are launched kernel by kernel, since CuPy cannot capture it.
        """
        if self._blocks.uses_cublas(cache.batch, 1) or cache.batch == 0:
            return self._step_cublas(token_ids, cache, step)
        decode = self._decode_step(cache.state(), step.is_dense)
        decode.place(token_ids, step.start, step.key_is_real)
        decode.run()
        return self.device.download(decode.scores)

    def tokens(self, token_ids: Any, cache: LazyCache, step: Step, choice: Choice, count: int) -> Any:
        """Return the next tokens (B, count), chosen on the device. The host only waits after the last step.

        Raises:
            Unsupported: The device does not choose tokens for this batch, dtype or top_k.
            BadWeights: A logit is NaN or infinite.
        """
        if self._blocks.uses_cublas(cache.batch, 1) or cache.batch == 0 or not chooses(choice):
            raise Unsupported(
                f"tokens: chosen on the device for 1 to {TENSOR_ROWS} rows in 16 or 32 bits, and top_k up to {TOP_K}"
            )
        choosing = self._choosing_step(cache.state(), step.is_dense, choice)
        choosing.begin(np.zeros(cache.batch, np.uint64) if choice.seeds is None else choice.seeds, choice.drawn)
        choosing.place(token_ids, step.start, step.key_is_real)
        for _ in range(count):
            choosing.run()
        columns = (choice.drawn + np.arange(count)) % cache.capacity
        chosen = self.device.download(choosing.chosen)[:, columns]
        if self.device.download(choosing.broken)[0]:
            name = self.policy.name
            raise BadWeights(
                f"logits: expected finite numbers; the weights hold NaN or overflow in {name}{overflow_hint(name)}"
            )
        return chosen

    def _step_cublas(self, token_ids: Any, cache: LazyCache, step: Step) -> Any:
        x = self.embed(np.asarray(token_ids)[:, None])
        for layer in range(self.config.num_layers):
            x = self.mlp_block(layer, self.attention_block(layer, x, cache, step))
        return self.logits(self.final_norm(x), True)[:, 0]

    def _decode_step(self, cache: DecodingCache, is_dense: bool) -> DecodeStep:
        key = is_dense, self.graphs
        if key not in cache.decode_steps:
            cache.decode_steps[key] = DecodeStep(**self._step_options(cache, is_dense))
        return cache.decode_steps[key]

    def _choosing_step(self, cache: DecodingCache, is_dense: bool, choice: Choice) -> ChoosingStep:
        forbidden = None if choice.forbidden is None else np.packbits(choice.forbidden).tobytes()
        key = is_dense, self.graphs, choice.temperature, choice.top_k, choice.top_p, forbidden
        if key not in cache.choosing_steps:
            cache.choosing_steps[key] = ChoosingStep(choice, **self._step_options(cache, is_dense))
        return cache.choosing_steps[key]

    def _step_options(self, cache: DecodingCache, is_dense: bool) -> dict[str, Any]:
        """Arguments of DecodeStep."""
        blocks = Blocks(self.device, self.config, self.dtype, self._slopes, cache.workspace)
        return {
            "weights": self._weights, "blocks": blocks, "workspace": cache.workspace, "cache": cache,
            "is_dense": is_dense, "graph": self.graphs,
        }  # fmt: skip

    # --- arrays of other libraries ---------------------------------------------------------------

    def from_dlpack(self, x: Any) -> Hidden:
        """Return hidden states from another library's array on this device, such as a torch tensor, without a copy.

        Args:
            x: Contiguous array (B, T, D) in the compute dtype that supports DLPack.

        Raises:
            InvalidInput: `x` has another shape or dtype, is not contiguous, or is on another device.
        """
        array, width = self.device.adopt(x), self.config.hidden_dim
        if array.ndim != 3 or array.shape[2] != width or array.dtype != self.dtype or not array.flags.c_contiguous:
            expected = f"a contiguous {self.dtype.name} array of shape (B, T, {width})"
            raise invalid("x", expected, f"{array.dtype.name} {array.shape}")
        return Hidden(array.reshape(-1, width), *array.shape[:2])

    def scores(self, x: Hidden, last_only: bool) -> Array:
        """Return the result of `logits` as a device array: (B, T, V), or (B, 1, V) for the last position."""
        rows, time = self._scored(x, last_only)
        return self._blocks.scores(rows, self._weights.head, time).reshape(self._scores_shape(x, last_only))

    # --- positions -------------------------------------------------------------------------------

    def _columns(self, step: Step, cache: LazyCache) -> tuple[Array, Array | None]:
        """Return the first column of each chunk of a sequence, and the mask of real columns.

        The mask is None if all columns are real. Both are uploaded once per call.
        """

        def upload() -> tuple[Array, Array | None]:
            batch, stop = step.key_is_real.shape
            starts = np.arange(step.start, max(stop, step.start + 1), memory.CHUNK_ROWS, dtype=np.int32)
            is_real = None
            if not step.is_dense:
                padded = np.zeros((batch, cache.capacity), np.uint8)
                padded[:, :stop] = step.key_is_real
                is_real = self.device.upload(padded)
            return self.device.upload(starts), is_real

        return step.derive((self.device.name, cache.capacity), upload)

    def _scored(self, x: Hidden, last_only: bool) -> tuple[Array, int]:
        """Return the rows whose logits are requested, and their positions per sequence."""
        return (self._last(x), 1) if last_only else (x.rows, x.time)

    def _last(self, x: Hidden) -> Array:
        """Return the rows (B, D) of the last position, or no rows if T is 0."""
        if x.time <= 1:
            return x.rows
        out = self._blocks.narrow_rows("last", x.batch, self.config.hidden_dim)
        self.device.copy(out, x.array[:, -1])
        return out

    def _scores_shape(self, x: Hidden, last_only: bool) -> tuple[int, int, int]:
        return x.batch, min(x.time, 1) if last_only else x.time, self.config.vocabulary_size
