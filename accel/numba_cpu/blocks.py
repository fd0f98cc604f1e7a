"""The two halves of a transformer block, each one compiled call."""

from accel.numba_cpu.attention import append, attend
from accel.numba_cpu.jit import jit
from accel.numba_cpu.linear import FLOAT32, GELU, PLAIN, RESIDUAL, product
from accel.numba_cpu.norm import norm_rows
from accel.numba_cpu.structs import (
    AttentionWeights,
    CacheView,
    CallShape,
    Epilogue,
    MLPWeights,
    ModelConstants,
    PackedRows,
    Workspace,
)
from bloomref.shapes import Array, Float


@jit
def attention_block(x: Float[Array, "M _"], shape: CallShape, weights: AttentionWeights, model: ModelConstants,
                    cache: CacheView, workspace: Workspace, out: Float[Array, "M _"]) -> None:  # fmt: skip
    """First half of a block (MOD-2): norm, query-key-value, attention, output projection, residual.

    Args:
        x: float32 (M, D rounded up to a multiple of NR): the hidden states; M = B T.
        cache: this layer's; the call writes its positions.
        out: float32, of the shape of `x`: the hidden states after this half.
    """
    m, threads = shape.batch * shape.time, len(workspace.sums)
    normed, fused, rows = workspace.normed, workspace.fused, PackedRows(workspace.rows, m)
    norm_rows(x, weights.norm, normed, rows, FLOAT32, threads)
    product(rows, weights.qkv, Epilogue(PLAIN, normed, model.rounding), fused, rows, workspace.sums)
    append(fused, shape, cache, rows.data, threads)
    attend(fused, shape, cache, model.slopes, rows, workspace.attention)
    base = normed if model.post_norm else x
    product(rows, weights.out, Epilogue(RESIDUAL, base, model.rounding), out, rows, workspace.sums)


@jit
def mlp_block(x: Float[Array, "M _"], m: int, weights: MLPWeights, model: ModelConstants, workspace: Workspace,
              out: Float[Array, "M _"]) -> None:  # fmt: skip
    """Second half of a block (MOD-2): norm, up-projection, GELU, down-projection, residual.

    Args:
        x: float32 (M, D rounded up to a multiple of NR): the hidden states.
        m: number of rows M.
        out: float32, of the shape of `x`: the hidden states after this half.
    """
    normed, rows, inner = workspace.normed, PackedRows(workspace.rows, m), PackedRows(workspace.inner, m)
    norm_rows(x, weights.norm, normed, rows, FLOAT32, len(workspace.sums))
    product(rows, weights.up, Epilogue(GELU, normed, model.rounding), out, inner, workspace.sums)
    base = normed if model.post_norm else x
    product(inner, weights.down, Epilogue(RESIDUAL, base, model.rounding), out, inner, workspace.sums)
