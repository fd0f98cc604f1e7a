"""Arguments of the kernels. Numba passes a named tuple as a struct: its fields cost what separate arguments would.

Arrays are C-contiguous and begin at a cache line. "Operand elements" are what the micro-kernel multiplies: float32, or
bfloat16 bits (uint16) in pairs. A step is one element of a sum, or one such pair. Letters are those of
`bloomref.shapes`; M = B T rows of a call, N outputs of a product.
"""

from typing import NamedTuple

import numpy as np

from bloomref.shapes import Array, Bool, Float


class Norm(NamedTuple):
    """A layer norm: weight and bias in float32, epsilon a float32."""

    weight: Float[Array, " D"]
    bias: Float[Array, " D"]
    epsilon: np.float32


class Projection(NamedTuple):
    """A packed weight (N, K) and its bias.

    Args:
        panels: flat, `[N / NR][steps][NR]` elements of the compute dtype (float32; bfloat16 or float16 bits), or
            `[N / NR][steps][NR][2]` in pairs; rows beyond N are zero.
        bias: float32, (N rounded up to a multiple of NR,); zero beyond N.
        n: outputs N.
        steps: steps of a sum over K.
    """

    panels: Array
    bias: Array
    n: int
    steps: int


class PackedRows(NamedTuple):
    """The left operand of a product: `m` rows, flat, `[K / KC][m][LDA]` steps of operand elements."""

    data: Array
    m: int


class Epilogue(NamedTuple):
    """The last operation of a product, on sums that are still in a cache.

    Args:
        kind: PLAIN: `out` = sums + bias. GELU: packed rows of the next product = GELU(sums + bias).
            RESIDUAL: `out` = base + (sums + bias), rounded.
        base: float32 (M, N rounded up), read by RESIDUAL alone; any such array for the others.
        rounding: FLOAT32 (none), BFLOAT16 or FLOAT16: what RESIDUAL rounds to.
    """

    kind: int
    base: Array
    rounding: int


class CallShape(NamedTuple):
    """Sizes of an attention call: `batch` rows of `time` positions from cache position `start` on; heads of `width`."""

    batch: int
    time: int
    start: int
    heads: int
    width: int


class CacheView(NamedTuple):
    """One layer's keys and values, in the layout of `attention`, and which of their positions hold tokens.

    Args:
        keys: flat elements of the compute dtype.
        values: flat elements of the compute dtype.
        capacity: positions P of a row, a multiple of NR.
        is_real: which positions hold a token.
        is_whole: which panels of NR positions hold nothing but tokens.
    """

    keys: Array
    values: Array
    capacity: int
    is_real: Bool[Array, "B P"]
    is_whole: Bool[Array, "B N"]


class AttentionWeights(NamedTuple):
    """The weights of a block's first half (MOD-2)."""

    norm: Norm
    qkv: Projection
    out: Projection


class MLPWeights(NamedTuple):
    """The weights of a block's second half (MOD-2)."""

    norm: Norm
    up: Projection
    down: Projection


class ModelConstants(NamedTuple):
    """Constants of a model that its blocks read.

    Args:
        post_norm: the residual is the norm's output instead of its input (MOD-3).
        rounding: what hidden states are rounded to: FLOAT32 (none), BFLOAT16 or FLOAT16.
        slopes: float32 ALiBi slopes.
    """

    post_norm: bool
    rounding: int
    slopes: Float[Array, " H"]


class AttentionScratch(NamedTuple):
    """Buffers of `attend`: (threads, `scratch_floats`) float32, (threads, `scratch_operands`) operand elements."""

    floats: Array
    operands: Array


class Workspace(NamedTuple):
    """Buffers of one call of a block, for M rows.

    Args:
        normed: float32 (M, D rounded up): the norm's output.
        rows: packed rows (M, D): the left operand of the products that read D.
        inner: packed rows (M, F): the left operand of the down-projection.
        fused: float32 (M, 3 D rounded up): query, key and value, interleaved by head.
        sums: float32 (threads, SUMS).
        attention: the threads' buffers of `attend`.
    """

    normed: Array
    rows: Array
    inner: Array
    fused: Array
    sums: Array
    attention: AttentionScratch
