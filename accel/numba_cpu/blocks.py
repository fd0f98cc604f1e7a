"""The two halves of a transformer block, each one compiled call."""

from typing import Any

from accel.numba_cpu.attention import append, attend
from accel.numba_cpu.jit import jit
from accel.numba_cpu.linear import FLOAT32, GELU, PLAIN, RESIDUAL, product
from accel.numba_cpu.norm import norm_rows


@jit
def attention_block(x: Any, batch: int, time: int, shape: Any, ln: Any, qkv: Any, dense: Any, post_norm: bool, cache: Any,
                    start: int, real: Any, slopes: Any, scale: Any, dtype: int, buffers: Any, out: Any, threads: int) -> None:  # fmt: skip
    """MOD-2, first half. `shape` is (heads, head width, steps of D); a linear is (panels, bias)."""
    heads, width, steps = shape
    normed, rows, fused, sums, work, tiles = buffers
    m, d = batch * time, heads * width
    norm_rows(x, m, d, ln, normed, rows, FLOAT32, threads)
    product(rows, m, qkv[0], 3 * d, steps, qkv[1], PLAIN, normed, dtype, fused, rows, sums, threads)
    append(fused, batch, time, heads, width, start, cache, rows, threads)
    attend(fused, batch, time, heads, width, start, cache, real, slopes, scale, rows, work, tiles, threads)
    base = normed if post_norm else x
    product(rows, m, dense[0], d, steps, dense[1], RESIDUAL, base, dtype, out, rows, sums, threads)


@jit
def mlp_block(x: Any, m: int, shape: Any, ln: Any, up: Any, down: Any, post_norm: bool, dtype: int, buffers: Any, out: Any,
              threads: int) -> None:  # fmt: skip
    """MOD-2, second half. `shape` is (D, F, steps of D, steps of F)."""
    d, f, steps, inner_steps = shape
    normed, rows, sums, inner = buffers
    norm_rows(x, m, d, ln, normed, rows, FLOAT32, threads)
    product(rows, m, up[0], f, steps, up[1], GELU, normed, dtype, out, inner, sums, threads)
    base = normed if post_norm else x
    product(inner, m, down[0], d, inner_steps, down[1], RESIDUAL, base, dtype, out, inner, sums, threads)
