"""How each kernel is launched: instantiation, grid, threads of a block, bytes of shared memory.

One description for whoever launches, on a device or in an emulator. The arguments of a kernel stand at its head in kernels/.
A grid with a zero in it (no rows) is not launched at all.
"""

from dataclasses import dataclass
from typing import NamedTuple

from accel.cupy_gpu.sources import ITEMSIZE, Kernel, kernel
from bloomref.config import BloomConfig

WARP = 32
MATVEC_ROWS = 16
"""Rows of a group of the matrix-vector kernels: each group reads the weights for itself."""
FEW_ROWS = 4
"""More rows than this in 16 bits are multiplied on the tensor cores: what each weight and row asks of the other cores takes them longer
than the weights take to arrive. An estimate, to be tuned on a device."""
TENSOR_ROWS = 64
"""More rows than this go through a GEMM."""
TOP_K = 64
"""The largest k of top_parts and choose_top, whose time grows with it."""
FLASH_WIDTH = 128
"""The widest head that the tensor-core kernel keeps in registers without spilling, in every generation."""
TILED_WIDTH = 128
"""The same of the kernel with tiles in float32."""
TILED_TIME = 8
"""Fewer queries of a row leave its blocks of 64 all but empty: the plain kernel multiplies nothing that is not there."""

_ROW_WARPS = 8
_ATTENTION_WARPS = 4
_MATVEC_WARPS = 8
_OUTPUTS = 4  # of a group of warps: as many loads of 16 bytes are on their way at once
_TILE = 64
_TENSOR_STEP = 32
_MERGED_LISTS = 256
_CHOICE_WARPS = 16
_SHARED_KB = {75: 64, 80: 164, 90: 228, 100: 228}
"""Shared memory of a multiprocessor; the least that a generation since sm_80 has, 100, for those not named."""
_RESERVED_SHARED = 1024  # of each block


@dataclass(frozen=True)
class Launch:
    """
    Args:
        splits: the argument of that name of a matrix-vector kernel.
        starts_early: the kernel waits by itself for the one before (`start_early` of common.cuh), so it may start beside it.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: int
    shared: int
    splits: int = 0
    starts_early: bool = False


class DecodeWorkspace(NamedTuple):
    """Sizes of two arguments of attention_decode: floats of `partials`, ints of `arrival_counter`, which starts as zeros."""

    partials: int
    arrival_counter: int


def weight_stride(width: int) -> int:
    """Numbers from a row of a weight matrix to the next, zeros beyond `width`: each row starts on 16 bytes."""
    return (width + 7) // 8 * 8


def cache_stride(head_width: int) -> int:
    """The same of keys and values."""
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


def _rows(name: str, dtype: str, rows: int, starts_early: bool = False) -> Launch:
    shared = _ROW_WARPS * max(4, ITEMSIZE[dtype])
    return Launch(kernel("rows", name, dtype), (rows, 1, 1), _ROW_WARPS * WARP, shared, starts_early=starts_early)


# --- attention -----------------------------------------------------------------------------------


def lanes_and_chunks(dtype: str, head_width: int) -> tuple[int, int]:
    """Lanes that share a key, and the pieces of 16 bytes that each of them holds."""
    pieces = -(-head_width * ITEMSIZE[dtype] // 16)
    lanes = min(WARP, 1 << (pieces - 1).bit_length())
    return lanes, -(-pieces // lanes)


def attention_rows(dtype: str, head_width: int, batch: int, heads: int, time: int) -> Launch:
    """The plain kernel, for every dtype and head width."""
    chosen = kernel("attention", "attention_rows", dtype, *lanes_and_chunks(dtype, head_width))
    return Launch(chosen, (-(-time // _ATTENTION_WARPS), heads, batch), _ATTENTION_WARPS * WARP, 0)


def has_flash(dtype: str, head_width: int, arch: int) -> bool:
    """Whether `attention_flash` runs this; `arch` is 90 for sm_90. Before sm_80 no tensor core multiplies bfloat16."""
    return head_width <= FLASH_WIDTH and (dtype == "float16" or (dtype == "bfloat16" and arch >= 80))


def attention_flash(dtype: str, head_width: int, batch: int, heads: int, time: int, arch: int) -> Launch:
    """The tensor-core kernel. Two stages need asynchronous copies, and more shared memory than sm_75 has."""
    width, stages = -(-head_width // 16) * 16, 2 if arch >= 80 else 1
    shared = (1 + 2 * stages) * _TILE * (width + 8) * 2
    chosen = kernel("flash", "attention_flash", dtype, width, stages)
    return Launch(chosen, (heads, -(-time // _TILE), batch), _ATTENTION_WARPS * WARP, shared)


def has_tiled(dtype: str, head_width: int, time: int, arch: int) -> bool:
    """Whether `attention_tiled` runs this, and is meant to."""
    return (
        dtype == "float32"
        and time >= TILED_TIME
        and head_width <= TILED_WIDTH
        and _tiled_blocks(head_width, 32, arch) >= 1
    )


def attention_tiled(head_width: int, batch: int, heads: int, time: int, arch: int) -> Launch:
    """The kernel with tiles in float32. 64 keys a step load less for each multiplication; 32, where two such blocks do not fit."""
    keys = 64 if _tiled_blocks(head_width, 64, arch) >= 2 else 32
    chosen = kernel("tiled", "attention_tiled", _tiled_width(head_width), keys)
    return Launch(chosen, (heads, -(-time // _TILE), batch), _ATTENTION_WARPS * WARP, _tiled_shared(head_width, keys))


def _tiled_width(head_width: int) -> int:
    return -(-head_width // 16) * 16


def _tiled_shared(head_width: int, keys: int) -> int:
    width = _tiled_width(head_width)
    return (_TILE * width + 2 * keys * width + _TILE * keys) * 4


def _tiled_blocks(head_width: int, keys: int, arch: int) -> int:
    """Blocks that the shared memory of a multiprocessor holds."""
    return _SHARED_KB.get(arch, 100) * 1024 // (_tiled_shared(head_width, keys) + _RESERVED_SHARED)


def decode_splits(batch: int, heads: int, capacity: int, sms: int) -> int:
    """Blocks that share the keys of one query: three blocks a processor, none with fewer than 64 keys of a full cache.

    Four would leave no registers for a block of the product behind, which starts early.
    """
    wanted = 3 * sms // max(1, batch * heads)
    return max(1, min(wanted, capacity // 64))


def attention_decode(
    dtype: str, head_width: int, batch: int, heads: int, capacity: int, sms: int, context: str
) -> Launch:
    """One query a row; `context` is the dtype of the result, float32 or `dtype`."""
    lanes, chunks = lanes_and_chunks(dtype, head_width)
    shared = _ATTENTION_WARPS * (2 + lanes * chunks * 16 // ITEMSIZE[dtype]) * 4
    chosen = kernel("attention", "attention_decode", dtype, context, lanes, chunks)
    grid = (decode_splits(batch, heads, capacity, sms), heads, batch)
    return Launch(chosen, grid, _ATTENTION_WARPS * WARP, shared, starts_early=True)


def decode_workspace(batch: int, heads: int, head_width: int, capacity: int, sms: int) -> DecodeWorkspace:
    splits = decode_splits(batch, heads, capacity, sms)
    return DecodeWorkspace(batch * heads * splits * (head_width + 2), batch * heads)


# --- matrix-vector products ----------------------------------------------------------------------


def qkv_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("qkv_matvec", dtype, rows, width, outputs, sms)


def gelu_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("gelu_matvec", dtype, rows, width, outputs, sms)


def residual_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("residual_matvec", dtype, rows, width, outputs, sms)


def head_matvec(dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    return _matvec("head_matvec", dtype, rows, width, outputs, sms)


def _splits(groups: int, turns: int, sms: int) -> int:
    """Warps that share an output, so that blocks take turns as few times as can be.

    It does not depend on the number of rows, so neither do a row's bits.

    Args:
        groups: of outputs, each of which a warp computes at once.
        turns: of a warp that has its outputs to itself.
    """

    def last_turn(number: int) -> int:
        rounds = -(-groups * number // (_MATVEC_WARPS * 2 * sms))
        return rounds * -(-turns // number)

    possible = (n for n in (1, 2, 4, _MATVEC_WARPS) if n <= max(1, turns))
    return min(
        possible, key=lambda n: last_turn(n) * (32 + n)
    )  # of as many turns, those that have fewer sums to add up


def _blocks(groups: int, number: int, at_once: int) -> int:
    """No more blocks than there are at once: they go on until all groups are done, and ask for what comes next before."""
    return min(-(-groups * number // _MATVEC_WARPS), max(1, at_once))


def _matvec(name: str, dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    """Groups of rows side by side, as even as they come: 17 rows are 9 and 8."""
    row_groups = -(-rows // MATVEC_ROWS)
    held = 1 << (-(-rows // max(1, row_groups)) - 1).bit_length()
    at_once = (2 if held <= 2 else 1) * sms // max(1, row_groups)
    groups = -(-outputs // _OUTPUTS)
    number = _splits(groups, -(-width * ITEMSIZE[dtype] // (16 * WARP)), sms)
    blocks = _blocks(groups, number, at_once)
    shared = (_MATVEC_WARPS * _OUTPUTS + 2) * held * 4
    chosen = kernel(
        "matvec", name, dtype, held, _OUTPUTS, width % 8 == 0 and (outputs % 8 == 0 or name != "residual_matvec")
    )
    return Launch(chosen, (row_groups, blocks, 1), _MATVEC_WARPS * WARP, shared, number, True)


# --- products on the tensor cores ----------------------------------------------------------------


def supports_tensor_cores(config: BloomConfig, dtype: str, arch: int) -> bool:
    """Whether the kernels of this section have a model: widths of whole loads, and the residual is the block's input (MOD-3).

    A block of sm_75 has too little shared memory for them.
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


def _tensor(name: str, dtype: str, rows: int, width: int, outputs: int, sms: int) -> Launch:
    """Two tiles of weights a warp read each x half as often; one, where two would leave sms without a block."""
    held = max(8, 1 << (rows - 1).bit_length())
    tiles = 2 if outputs >= 32 * sms else 1
    groups = -(-outputs // (16 * tiles))
    number = _splits(groups, -(-width // _TENSOR_STEP), sms)
    blocks = _blocks(groups, number, (2 if held <= 32 else 1) * sms)
    shared = _MATVEC_WARPS * held * (16 * tiles + 4) * 4
    chosen = kernel("tensor", name, dtype, held, tiles)
    return Launch(chosen, (blocks, 1, 1), _MATVEC_WARPS * WARP, shared, number, True)


# --- the choice of a token -----------------------------------------------------------------------


def choose_best(rows: int) -> Launch:
    return _choice("choose_best", (rows, 1, 1), 1, 0)


def top_lists(vocabulary: int) -> int:
    """Lists that top_parts makes of a row: one a warp, each of at least 256 tokens, and no more than choose_top merges."""
    return _ROW_WARPS * max(1, min(_MERGED_LISTS // _ROW_WARPS, vocabulary // (256 * _ROW_WARPS)))


def top_parts(rows: int, vocabulary: int) -> Launch:
    grid = (top_lists(vocabulary) // _ROW_WARPS, rows, 1)
    return _choice("top_parts", grid, _ROW_WARPS, 0)


def choose_top(rows: int, k: int) -> Launch:
    return _choice("choose_top", (rows, 1, 1), _ROW_WARPS, k * (8 + _ROW_WARPS * (4 + 4)))


def choose_any(rows: int) -> Launch:
    return _choice("choose_any", (rows, 1, 1), _CHOICE_WARPS, _CHOICE_WARPS * (WARP + 1) * 8)


def _choice(name: str, grid: tuple[int, int, int], warps: int, shared: int) -> Launch:
    return Launch(kernel("choice", name), grid, warps * WARP, shared, starts_early=True)
