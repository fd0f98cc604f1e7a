"""Estimates of device memory, made before anything is allocated, and error messages that name what would fit."""

from collections.abc import Callable
from math import prod

from accel.cupy_gpu.device import Device
from accel.cupy_gpu.launches import (
    MATVEC_ROWS,
    TENSOR_ROWS,
    TOP_K,
    cache_stride,
    decode_buffers,
    top_lists,
    weight_stride,
)
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, DTypePolicy, accumulation_dtype
from bloomref.errors import Unsupported
from bloomref.params import Weight, total
from bloomref.runtime.backend import READ_ROWS, Memory

CHUNK_ROWS = READ_ROWS
"""Positions that a block computes at a time: enough for a GEMM to reach its peak rate."""
_STEP_BYTES = 1 << 14
"""Bytes per row for the small arrays of a decoding step."""
LOGITS_BYTES = 1 << 28
"""Approximate size of a chunk in which logits of many positions are copied to the host."""


def memory(config: BloomConfig, policy: DTypePolicy, batch: int, length: int, sms: int) -> Memory:
    """Return the estimate of `SupportsMemoryEstimate` (BKD-15), in bytes.

    Args:
        batch, length: Rows and positions of a cache.
        sms: SMs of the device, which determine the buffers of split-K attention.
    """
    return Memory(
        weight_bytes(config, policy),
        cache_bytes(config, policy, batch, length, sms),
        max(working_bytes(config, policy, batch), step_bytes(config, policy, batch, length)),
    )


def weight_bytes(config: BloomConfig, policy: DTypePolicy) -> int:
    """Bytes of a model's weights."""
    return total(config, lambda weight: _bytes(weight, config, policy))


def _bytes(weight: Weight, config: BloomConfig, policy: DTypePolicy) -> int:
    """Bytes of one weight: a matrix in the compute dtype, with aligned rows, or a vector in the accumulation dtype."""
    shape = weight.hf_shape(config)
    if len(shape) == 2:
        return shape[0] * weight_stride(shape[1]) * policy.compute_dtype.itemsize
    return prod(shape) * accumulation_dtype(policy.compute_dtype).itemsize


def cache_bytes(config: BloomConfig, policy: DTypePolicy, batch: int, length: int, sms: int) -> int:
    """Bytes of a cache: keys and values of every layer, and the buffers of split-K decoding attention."""
    position = 2 * config.num_layers * config.num_heads * cache_stride(config.head_dim) * policy.compute_dtype.itemsize
    partials, arrival_counter = decode_buffers(batch, config.num_heads, config.head_dim, length, sms)
    return batch * length * position + 4 * (partials + arrival_counter)


def working_bytes(config: BloomConfig, policy: DTypePolicy, rows: int) -> int:
    """Peak bytes of temporaries in a call that computes `rows` positions, including at most LOGITS_BYTES of logits.

    A block holds its input, its output and the temporaries of one chunk. Per position, attention needs 5 D numbers in
    the accumulation dtype and 2 D in the compute dtype; the MLP needs D + F in each.
    """
    narrow, wide = policy.compute_dtype.itemsize, accumulation_dtype(policy.compute_dtype).itemsize
    d, f = config.hidden_dim, config.intermediate_dim
    attention = 5 * d * wide + 2 * d * narrow
    mlp = (f + d) * wide + (f + d) * narrow
    block = 2 * rows * d * narrow + min(rows, CHUNK_ROWS) * max(attention, mlp)
    return block + min(rows, logits_rows(config, policy)) * config.vocabulary_size * wide


def step_bytes(config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> int:
    """Bytes that the decoding steps of a cache keep allocated: activations, logits, mask, and candidate lists."""
    narrow, d, f = policy.compute_dtype.itemsize, config.hidden_dim, config.intermediate_dim
    if batch > TENSOR_ROWS or narrow > 4:
        return 0
    row = (5 * d + f) * narrow + (2 * d + f + config.vocabulary_size) * 4
    lists = (top_lists(config.vocabulary_size) + 1) * TOP_K * 8
    return batch * (row + lists + 5 * length + _STEP_BYTES)


def logits_rows(config: BloomConfig, policy: DTypePolicy) -> int:
    """Positions whose logits are computed at a time."""
    wide = accumulation_dtype(policy.compute_dtype).itemsize
    return max(MATVEC_ROWS, LOGITS_BYTES // (config.vocabulary_size * wide))


# --- errors --------------------------------------------------------------------------------------


def why_weights_do_not_fit(device: Device, config: BloomConfig, policy: DTypePolicy) -> str | None:
    """Return None if the weights fit; otherwise a sentence that names a dtype that does."""

    def need(policy: DTypePolicy) -> int:
        return weight_bytes(config, policy) + working_bytes(config, policy, 1)

    free = device.free_bytes()
    if need(policy) <= free:
        return None
    narrower = [name for name in ("float32", *half_dtypes(device.arch)) if need(POLICIES[name]) <= free]
    hint = f"dtype={narrower[0]!r} does" if narrower else "it needs a device with more memory"
    return f"{_size(need(policy))} of {policy.compute_dtype} weights do not fit into {_size(free)} free on {device.name}; {hint}"


def half_dtypes(arch: int) -> tuple[str, ...]:
    """16-bit dtypes that an architecture supports."""
    return ("bfloat16", "float16") if arch >= 80 else ("float16",)


def check_cache_fits(device: Device, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> None:
    """Check that a cache and a generation over it fit into free memory.

    A prompt is read READ_ROWS positions at a time (`Engine.read`), or one position per row if there are more rows than
    that.

    Raises:
        Unsupported: It does not fit. The message names the batch and the length that would.
    """
    free = device.free_bytes()

    def need(rows: int, positions: int) -> int:
        cache = cache_bytes(config, policy, rows, positions, device.sms)
        read = min(rows * positions, max(rows, READ_ROWS))
        return cache + step_bytes(config, policy, rows, positions) + working_bytes(config, policy, read)

    if need(batch, length) <= free:
        return
    hints = [
        f"{fitting} {what}"
        for fitting, what in (
            (_largest(lambda n: need(batch, n) <= free, length), f"positions for {batch} rows"),
            (_largest(lambda n: need(n, length) <= free, batch), f"rows of {length} positions"),
        )
        if fitting
    ]
    hint = f"{' or '.join(hints)} fit" if hints else "free memory there, or use a narrower dtype"
    raise Unsupported(
        f"cache: {_size(need(batch, length))} for {batch} rows of {length} positions do not fit into {_size(free)} free on "
        f"{device.name}; {hint}"
    )


def _largest(fits: Callable[[int], bool], below: int) -> int:
    """Return the largest n < `below` for which `fits` holds, by bisection; 0 if there is none.

    `fits` must be monotonic.
    """
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _size(count: float) -> str:
    """Format a number of bytes, such as 1.12 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
