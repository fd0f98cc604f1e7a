"""Launch configuration of each kernel: instantiation, grid, threads per block, bytes of shared memory.

Devices and the emulator of the tests use the same configurations. The arguments of a kernel are documented in kernels/.
A grid with a zero in it (no rows) is not launched.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from accel.cupy_gpu.sources import ITEMSIZE, Kernel, kernel
from bloomref.config import BloomConfig

WARP = 32
MATVEC_ROWS = 16
"""Most rows of a row group of the gemv kernels. Each group reads the weights separately."""
FEW_ROWS = 4
"""More rows than this in 16 bits use tensor cores. An estimate, to be tuned on a device.

On CUDA cores, the arithmetic would take longer than reading the weights.
"""
TENSOR_ROWS = 64
"""More rows than this use cuBLAS."""
SCORE_DIGITS, DIGIT_VALUES = 4, 256
"""Digits of a score for top-p among all tokens, and their values."""
TOP_K = 64
"""Largest k of top_parts and choose_top, whose time grows with k."""
FLASH_WIDTH = 128
"""Widest head of `attention_flash`: the widest that does not spill registers on any architecture."""
TILED_WIDTH = 128
"""Widest head of `attention_tiled`: the widest that does not spill registers on any architecture."""
TILED_TIME = 8
"""Fewest queries per sequence for `attention_tiled`: with fewer, its tile of 64 queries is almost empty."""

# Constants of the kernels, which must agree with kernels/.
_ROW_WARPS = 8  # per thread block of rows.cu, top_parts and choose_top
_ATTENTION_WARPS = 4
_MATVEC_WARPS = 8  # of matvec.cu and tensor.cu
_OUTPUTS = 4  # outputs of a group of gemv warps: the 16-byte loads that a lane issues at once
_TILE = 64  # queries of a thread block of attention_flash and attention_tiled
_TENSOR_STEP = 32  # elements of k that a warp of tensor.cu multiplies at a time
_TENSOR_TILE = 16  # outputs of an mma instruction
_TENSOR_DEPTH = {1: 4, 2: 3}  # steps in flight, by the tiles of a warp
_MERGED_LISTS = _ROW_WARPS * WARP  # lists that choose_top merges, and parts of choose_any: one per thread

# Estimates that divide the work, to be tuned on a device.
_DECODE_BLOCKS_PER_SM = 3
"""Thread blocks of attention_decode per SM.

Four would leave no registers for the next gemv kernel, which starts early.
"""
_KEYS_PER_SPLIT = 64
"""Fewest keys of a full cache per split, so that reading them outweighs merging one more partial state."""
_TOKENS_PER_LIST = 256
"""Fewest tokens from which a warp selects its k best: eight per lane, so that scanning outweighs the selection."""
_TOKENS_PER_PART = 1024
"""Fewest tokens of a thread block that samples among all: four per thread."""
_GEMV_BLOCKS_PER_SM = 2
"""Thread blocks per SM that `_splits` assumes for any number of rows: those of one or two rows."""
_SPLIT_COST = 32
"""Tie-break of `_splits`: each further warp per output counts as 1/32 (3 %) more time, for the partial sums to add."""
_SHARED_KB = {75: 64, 80: 164, 90: 228, 100: 228}
"""Shared memory of an SM by architecture. Others since sm_80 have at least 100."""
_PREFETCHED = 16 << 20
"""Most bytes of the next product's weights that a product prefetches: a third of the L2 cache of a large GPU."""
_RESERVED_SHARED = 1024
"""Bytes of shared memory that the system reserves per thread block."""


@dataclass(frozen=True)
class Launch:
    """Configuration of one kernel launch.

    Args:
        kernel: The instantiation.
        grid: Thread blocks in x, y and z.
        block: Threads per block.
        shared: Bytes of dynamic shared memory.
        splits: Argument `splits` of the gemv and tensor-core kernels: warps that share an output (split-K).
        starts_early: True if the kernel supports programmatic dependent launch: it waits for the preceding kernel
            itself (`start_early` of common.cuh).
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: int
    shared: int
    splits: int = 0
    starts_early: bool = False


_cached = lru_cache(maxsize=4096)
"""Keeps the configurations of a model's shapes: to compute one takes about as long as to launch the kernel."""


class DecodeBuffers(NamedTuple):
    """Sizes of two buffers of attention_decode: floats of `partials`, ints of `arrival_counter`.

    `arrival_counter` is zero at first.
    """

    partials: int
    arrival_counter: int


def prefetched_loads(nbytes: int) -> int:
    """Return the number of 16-byte loads of the next product's weights that a product prefetches."""
    return min(nbytes, _PREFETCHED) // 16


def weight_stride(width: int) -> int:
    """Row stride of a weight matrix, in numbers, padded so that every row is 16-byte aligned in a 16-bit dtype."""
    return (width + 7) // 8 * 8


def cache_stride(head_width: int) -> int:
    """Row stride of keys and values, in numbers, padded so that every row is 16-byte aligned in a 16-bit dtype."""
    return (head_width + 7) // 8 * 8


# --- rows ----------------------------------------------------------------------------------------


def embed_norm(dtype: str, rows: int) -> Launch:
    return _rows("embed_norm", dtype, rows, starts_early=True)


def layer_norm(dtype: str, rows: int) -> Launch:
    return _rows("layer_norm", dtype, rows, starts_early=True)


def qkv_split(dtype: str, rows: int) -> Launch:
    return _rows("qkv_split", dtype, rows)


def bias_gelu(dtype: str, rows: int) -> Launch:
    return _rows("bias_gelu", dtype, rows)


def bias_residual(dtype: str, rows: int) -> Launch:
    return _rows("bias_residual", dtype, rows)


@_cached
def _rows(name: str, dtype: str, rows: int, starts_early: bool = False) -> Launch:
    shared = _ROW_WARPS * max(4, ITEMSIZE[dtype])
    return Launch(kernel("rows", name, dtype), (rows, 1, 1), _ROW_WARPS * WARP, shared, starts_early=starts_early)


# --- attention -----------------------------------------------------------------------------------


def lanes_and_chunks(dtype: str, head_width: int) -> tuple[int, int]:
    """Return the number of lanes that share a key, and the number of 16-byte chunks that each of them holds."""
    chunks = -(-head_width * ITEMSIZE[dtype] // 16)
    lanes = min(WARP, 1 << (chunks - 1).bit_length())
    return lanes, -(-chunks // lanes)


@_cached
def attention_rows(dtype: str, head_width: int, batch: int, heads: int, time: int) -> Launch:
    """Plain kernel, for every dtype and head width."""
    chosen = kernel("attention", "attention_rows", dtype, *lanes_and_chunks(dtype, head_width))
    return Launch(chosen, (-(-time // _ATTENTION_WARPS), heads, batch), _ATTENTION_WARPS * WARP, 0)


def has_flash(dtype: str, head_width: int, arch: int) -> bool:
    """True if `attention_flash` supports this dtype and head width on sm_`arch`.

    Before sm_80, tensor cores lack bfloat16.
    """
    return head_width <= FLASH_WIDTH and (dtype == "float16" or (dtype == "bfloat16" and arch >= 80))


@_cached
def attention_flash(dtype: str, head_width: int, batch: int, heads: int, time: int, arch: int) -> Launch:
    """Tensor-core kernel. Its two stages need asynchronous copies and more shared memory than sm_75 has."""
    width, stages = -(-head_width // 16) * 16, 2 if arch >= 80 else 1
    shared = (1 + 2 * stages) * _TILE * (width + 8) * 2
    chosen = kernel("flash", "attention_flash", dtype, width, stages)
    return Launch(chosen, (heads, -(-time // _TILE), batch), _ATTENTION_WARPS * WARP, shared)


def has_tiled(dtype: str, head_width: int, time: int, arch: int) -> bool:
    """True if `attention_tiled` supports this call and is faster than the plain kernel."""
    return (
        dtype == "float32"
        and time >= TILED_TIME
        and head_width <= TILED_WIDTH
        and _tiled_blocks(head_width, 32, arch) >= 1
    )


@_cached
def attention_tiled(head_width: int, batch: int, heads: int, time: int, arch: int) -> Launch:
    """Tiled float32 kernel.

    64 keys per iteration need fewer loads; 32 are used if two thread blocks with 64 do not fit an SM.
    """
    keys = 64 if _tiled_blocks(head_width, 64, arch) >= 2 else 32
    chosen = kernel("tiled", "attention_tiled", _tiled_width(head_width), keys)
    return Launch(chosen, (heads, -(-time // _TILE), batch), _ATTENTION_WARPS * WARP, _tiled_shared(head_width, keys))


def _tiled_width(head_width: int) -> int:
    return -(-head_width // 16) * 16


def _tiled_shared(head_width: int, keys: int) -> int:
    width = _tiled_width(head_width)
    return (_TILE * width + 2 * keys * width + _TILE * keys) * 4


def _tiled_blocks(head_width: int, keys: int, arch: int) -> int:
    """Thread blocks that fit into the shared memory of an SM."""
    return _SHARED_KB.get(arch, 100) * 1024 // (_tiled_shared(head_width, keys) + _RESERVED_SHARED)


def decode_splits(batch: int, heads: int, capacity: int, sms: int) -> int:
    """Return the number of thread blocks among which the keys of one query are split."""
    splits = _DECODE_BLOCKS_PER_SM * sms // max(1, batch * heads)
    return max(1, min(splits, capacity // _KEYS_PER_SPLIT))


@_cached
def attention_decode(
    dtype: str, head_width: int, batch: int, heads: int, capacity: int, sms: int, context: str
) -> Launch:
    """Split-K decoding attention, one query per sequence. `context` is the dtype of the result, float32 or `dtype`."""
    lanes, chunks = lanes_and_chunks(dtype, head_width)
    shared = _ATTENTION_WARPS * (2 + lanes * chunks * 16 // ITEMSIZE[dtype]) * 4
    chosen = kernel("attention", "attention_decode", dtype, context, lanes, chunks)
    grid = (decode_splits(batch, heads, capacity, sms), heads, batch)
    return Launch(chosen, grid, _ATTENTION_WARPS * WARP, shared, starts_early=True)


def decode_buffers(batch: int, heads: int, head_width: int, capacity: int, sms: int) -> DecodeBuffers:
    splits = decode_splits(batch, heads, capacity, sms)
    return DecodeBuffers(batch * heads * splits * (head_width + 2), batch * heads)


# --- matrix-vector products (gemv) ---------------------------------------------------------------


def qkv_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("qkv_matvec", dtype, rows, width, outputs, sms)


def gelu_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("gelu_matvec", dtype, rows, width, outputs, sms)


def residual_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("residual_matvec", dtype, rows, width, outputs, sms)


def head_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("head_matvec", dtype, rows, width, outputs, sms)


def _splits(groups: int, turns: int, sms: int) -> int:
    """Return the number of warps that share an output (split-K), chosen so that the last thread block is done soonest.

    It is independent of the number of rows, so the bits of a row are as well.

    Args:
        groups: Groups of outputs; a warp computes the outputs of a group together.
        turns: Iterations over k of a warp that does not share its outputs.
        sms: SMs of the device.
    """

    def iterations(splits: int) -> int:
        waves = -(-groups * splits // (_MATVEC_WARPS * _GEMV_BLOCKS_PER_SM * sms))
        return waves * -(-turns // splits)

    candidates = (n for n in (1, 2, 4, _MATVEC_WARPS) if n <= max(1, turns))
    return min(candidates, key=lambda n: iterations(n) * (_SPLIT_COST + n))


def _blocks(groups: int, splits: int, resident: int) -> int:
    """Return the number of thread blocks, at most the `resident` ones that the device runs concurrently.

    Resident blocks loop over the remaining groups and prefetch the weights of the next one, which a new block could not
    do.
    """
    return min(-(-groups * splits // _MATVEC_WARPS), max(1, resident))


@_cached
def _matvec(name: str, dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    """Launch of a gemv kernel. Rows are divided evenly into row groups: 17 rows are 9 and 8."""
    row_groups = -(-rows // MATVEC_ROWS)
    group_rows = 1 << (-(-rows // max(1, row_groups)) - 1).bit_length()
    blocks_per_sm = 2 if group_rows <= 2 else 1  # BLOCKS of matvec.cu
    groups = -(-outputs // _OUTPUTS)
    splits = _splits(groups, -(-width * ITEMSIZE[dtype] // (16 * WARP)), sms)
    blocks = _blocks(groups, splits, blocks_per_sm * sms // max(1, row_groups))
    shared = (_MATVEC_WARPS * _OUTPUTS + 2) * group_rows * 4
    is_whole = width % 8 == 0 and (outputs % 8 == 0 or name != "residual_matvec")
    chosen = kernel("matvec", name, dtype, group_rows, _OUTPUTS, is_whole)
    return Launch(chosen, (row_groups, blocks, 1), _MATVEC_WARPS * WARP, shared, splits, True)


# --- products on the tensor cores ----------------------------------------------------------------


def supports_tensor_cores(config: BloomConfig, dtype: str, arch: int) -> bool:
    """True if the kernels of tensor.cu support a model.

    The widths must be multiples of 8, and the residual pre-layernorm (MOD-3).
    A thread block of sm_75 has too little shared memory for them.
    """
    whole = config.hidden_dim % 8 == 0 and config.intermediate_dim % 8 == 0
    return (
        arch >= 80
        and dtype in ("bfloat16", "float16")
        and whole
        and not config.apply_residual_connection_post_layernorm
    )


def qkv_tensor(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _tensor("qkv_tensor", dtype, rows, width, outputs, sms)


def gelu_tensor(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _tensor("gelu_tensor", dtype, rows, width, outputs, sms)


def residual_tensor(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _tensor("residual_tensor", dtype, rows, width, outputs, sms)


def head_tensor(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _tensor("head_tensor", dtype, rows, width, outputs, sms)


@_cached
def _tensor(name: str, dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    """Launch of a tensor-core kernel.

    With two weight tiles per warp, x is read half as often; one tile if SMs would be idle.
    """
    padded_rows = max(8, 1 << (rows - 1).bit_length())
    tiles = 2 if outputs >= 2 * _TENSOR_TILE * sms else 1
    groups = -(-outputs // (_TENSOR_TILE * tiles))
    splits = _splits(groups, -(-width // _TENSOR_STEP), sms)
    blocks_per_sm = 2 if padded_rows <= 32 else 1  # BLOCKS of tensor.cu
    blocks = _blocks(groups, splits, blocks_per_sm * sms)
    ring = _TENSOR_DEPTH[tiles] * tiles * 2 * _MATVEC_WARPS * WARP * 16
    shared = ring + _MATVEC_WARPS * padded_rows * (_TENSOR_TILE + 4) * 4
    chosen = kernel("tensor", name, dtype, padded_rows, tiles)
    return Launch(chosen, (blocks, 1, 1), _MATVEC_WARPS * WARP, shared, splits, True)


# --- the choice of a token -----------------------------------------------------------------------


def choose_best(rows: int) -> Launch:
    return _choice("choose_best", (rows, 1, 1), 1, 0)


def top_lists(vocabulary: int) -> int:
    """Return the number of candidate lists of a row: one per warp of top_parts, at most what choose_top merges."""
    return _ROW_WARPS * max(1, min(_MERGED_LISTS // _ROW_WARPS, vocabulary // (_TOKENS_PER_LIST * _ROW_WARPS)))


def top_parts(rows: int, vocabulary: int) -> Launch:
    grid = (top_lists(vocabulary) // _ROW_WARPS, rows, 1)
    return _choice("top_parts", grid, _ROW_WARPS, 0)


def choose_top(rows: int, k: int) -> Launch:
    return _choice("choose_top", (rows, 1, 1), _ROW_WARPS, k * (8 + _ROW_WARPS * (4 + 4)))


def any_parts(vocabulary: int) -> int:
    """Return the number of thread blocks among which the tokens of a row are divided to sample among all."""
    return max(1, min(_MERGED_LISTS, vocabulary // _TOKENS_PER_PART))


def any_best(rows: int, vocabulary: int) -> Launch:
    return _choice("any_best", (any_parts(vocabulary), rows, 1), _ROW_WARPS, 0)


def any_digits(rows: int, vocabulary: int) -> Launch:
    return _choice("any_digits", (any_parts(vocabulary), rows, 1), _ROW_WARPS, 0)


def any_sums(rows: int, vocabulary: int) -> Launch:
    return _choice("any_sums", (any_parts(vocabulary), rows, 1), _ROW_WARPS, 0)


def choose_any(rows: int) -> Launch:
    return _choice("choose_any", (rows, 1, 1), _ROW_WARPS, 0)


@_cached
def _choice(name: str, grid: tuple[int, int, int], warps: int, shared: int) -> Launch:
    return Launch(kernel("choice", name), grid, warps * WARP, shared, starts_early=True)
