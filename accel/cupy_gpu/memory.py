"""How many bytes a model takes on the device, before any of them is allocated; and what to do where they are too many."""

from collections.abc import Callable
from math import prod

from accel.cupy_gpu.device import Device
from accel.cupy_gpu.launches import (
    MATVEC_ROWS,
    TENSOR_ROWS,
    TOP_K,
    cache_stride,
    decode_workspace,
    top_lists,
    weight_stride,
)
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, DTypePolicy, accumulation_dtype
from bloomref.errors import Unsupported
from bloomref.params import Weight, keys
from bloomref.runtime.backend import READ_ROWS, Memory

CHUNK_ROWS = READ_ROWS
"""Positions that a block takes at a time: enough for a matrix product to reach its full rate."""
_STEP_BYTES = 1 << 14
"""The small arrays of a decoding step, for each row."""
LOGITS_BYTES = 1 << 28
"""Scores of many positions go to the host in pieces of about this size."""


def memory(config: BloomConfig, policy: DTypePolicy, batch: int, length: int, sms: int) -> Memory:
    """The answer of `SupportsMemoryEstimate` (BKD-15)."""
    return Memory(
        weight_bytes(config, policy),
        cache_bytes(config, policy, batch, length, sms),
        max(working_bytes(config, policy, batch), step_bytes(config, policy, batch, length)),
    )


def weight_bytes(config: BloomConfig, policy: DTypePolicy) -> int:
    return sum(_bytes(weight, config, policy) for _, weight in keys(config))


def _bytes(weight: Weight, config: BloomConfig, policy: DTypePolicy) -> int:
    """Matrices in the compute dtype, in rows of 16 bytes; biases and norms in the accumulation dtype."""
    shape = weight.hf_shape(config)
    if len(shape) == 2:
        return shape[0] * weight_stride(shape[1]) * policy.compute_dtype.itemsize
    return prod(shape) * accumulation_dtype(policy.compute_dtype).itemsize


def cache_bytes(config: BloomConfig, policy: DTypePolicy, batch: int, length: int, sms: int) -> int:
    """Keys and values of every layer, and the space in which the parts of a decoding step's attention meet."""
    position = 2 * config.num_layers * config.num_heads * cache_stride(config.head_dim) * policy.compute_dtype.itemsize
    partials, arrival_counter = decode_workspace(batch, config.num_heads, config.head_dim, length, sms)
    return batch * length * position + 4 * (partials + arrival_counter)


def working_bytes(config: BloomConfig, policy: DTypePolicy, rows: int) -> int:
    """The largest temporaries of a call that computes `rows` positions, and scores at most LOGITS_BYTES of them.

    A block holds its input, its output and one piece's way through it; attention 5 D and the MLP F numbers of the
    accumulation dtype, 2 D and F of the compute dtype.
    """
    narrow, wide = policy.compute_dtype.itemsize, accumulation_dtype(policy.compute_dtype).itemsize
    d, f = config.hidden_dim, config.intermediate_dim
    attention = 5 * d * wide + 2 * d * narrow
    mlp = (f + d) * wide + (f + d) * narrow
    block = 2 * rows * d * narrow + min(rows, CHUNK_ROWS) * max(attention, mlp)
    return block + min(rows, logits_rows(config, policy)) * config.vocabulary_size * wide


def step_bytes(config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> int:
    """What a cache's decoding steps hold on to: activations, scores, mask, and the lists of the best tokens."""
    narrow, d, f = policy.compute_dtype.itemsize, config.hidden_dim, config.intermediate_dim
    if batch > TENSOR_ROWS or narrow > 4:
        return 0
    row = (5 * d + f) * narrow + (2 * d + f + config.vocabulary_size) * 4
    lists = (top_lists(config.vocabulary_size) + 1) * TOP_K * 8
    return batch * (row + lists + 5 * length + _STEP_BYTES)


def logits_rows(config: BloomConfig, policy: DTypePolicy) -> int:
    """Positions scored at a time."""
    wide = accumulation_dtype(policy.compute_dtype).itemsize
    return max(MATVEC_ROWS, LOGITS_BYTES // (config.vocabulary_size * wide))


# --- where it does not fit -----------------------------------------------------------------------


def why_weights_do_not_fit(device: Device, config: BloomConfig, policy: DTypePolicy) -> str | None:
    """A sentence that names a dtype that does fit, or None when this one fits."""

    def need(policy: DTypePolicy) -> int:
        return weight_bytes(config, policy) + working_bytes(config, policy, 1)

    free = device.free_bytes()
    if need(policy) <= free:
        return None
    narrower = [name for name in ("float32", *half_dtypes(device.arch)) if need(POLICIES[name]) <= free]
    hint = f"dtype={narrower[0]!r} does" if narrower else "it needs a device with more memory"
    return f"{_size(need(policy))} of {policy.compute_dtype} weights do not fit into {_size(free)} free on {device.name}; {hint}"


def half_dtypes(arch: int) -> tuple[str, ...]:
    """Those of 16 bits that an architecture computes with."""
    return ("bfloat16", "float16") if arch >= 80 else ("float16",)


def check_cache_fits(device: Device, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> None:
    """Raises Unsupported, with the batch or the length that would fit, where a cache and what a generation runs over it do not.

    A prompt is read READ_ROWS positions at a time (`Engine.read`), or one of each row where the rows are more.
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
    """The largest n < below that fits, of a condition that holds for small n; 0 where none does."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _size(count: float) -> str:
    """Bytes for a reader: 1.12 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
