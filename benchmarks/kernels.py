"""Time of each kernel of one block on the Numba backend, measured alone.

Every kernel runs several times on random numbers of the preset's sizes; its time is the median. `floor` is the
time of its arithmetic at the rate of the register tile alone, with operands in the L1 cache. The rest is overhead of
the kernel.

Example: python -m benchmarks.kernels --dtype bfloat16 --tokens 512
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from accel.numba_cpu import make_backend
from accel.numba_cpu.structs import AttentionScratch, CacheView, CallShape, Epilogue, Norm, PackedRows
from benchmarks.machine import command_line, describe_machine


@dataclass(frozen=True)
class Kernel:
    """One compiled call, its floating-point operations, and how often a block makes it (0: for comparison only)."""

    name: str
    call: Callable[[], Any]
    operations: int = 0
    times: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bloom_560m_multi", help="preset whose dimensions are used")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tokens", type=int, default=512, help="length of the prompt")
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each kernel")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    machine = describe_machine()
    rows = measure(block_kernels(arguments.preset, arguments.dtype, arguments.tokens), arguments.runs)
    what = f"one block of {arguments.preset}, {arguments.tokens} tokens, {arguments.dtype}"
    Console().print(table(what, rows))
    if arguments.output:
        report = {"command": command_line(), "what": what, "machine": machine, "kernels": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def measure(kernels: list[Kernel], runs: int) -> list[dict[str, Any]]:
    """Median milliseconds, and the rate, of each kernel; runs of the kernels alternate."""
    seconds: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    for number in range(runs + 1):
        for kernel in kernels:
            began = perf_counter()
            kernel.call()
            if number:  # the first one compiles and warms up
                seconds[kernel.name].append(perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = max(kernel.operations / medians[kernel.name] for kernel in kernels)  # the tile's, but for noise
    return [
        {
            "kernel": kernel.name,
            "times": kernel.times,
            "milliseconds": 1e3 * kernel.times * medians[kernel.name],
            "floor_milliseconds": 1e3 * kernel.times * kernel.operations / best,
            "gflop_per_second": kernel.operations / medians[kernel.name] / 1e9,
        }
        for kernel in kernels
    ]


def table(what: str, rows: list[dict[str, Any]]) -> Table:
    report = Table("kernel", "times", "ms", "floor, ms", "GFLOP/s", title=what)
    for row in rows:
        rate = f"{row['gflop_per_second']:.0f}" if row["gflop_per_second"] else ""
        figures = f"{row['milliseconds']:.2f}", f"{row['floor_milliseconds']:.2f}", rate
        report.add_row(row["kernel"], str(row["times"]), *figures)
    of_a_block = [row for row in rows if row["times"]]
    sums = (sum(row[key] for row in of_a_block) for key in ("milliseconds", "floor_milliseconds"))
    report.add_row("all", "", *(f"{value:.2f}" for value in sums), "")
    return report


def block_kernels(preset: str, dtype: str, tokens: int) -> list[Kernel]:
    """The kernels of one block, in order."""
    make_backend()  # the cache folder of kernels, and how long idle threads spin
    import numba

    from accel.numba_cpu import attention, linear, norm, weight_packing
    from accel.numba_cpu.isa import NR
    from accel.numba_cpu.weight_packing import aligned, up
    from bloomref import alibi
    from bloomref.dtypes import floating_dtype
    from bloomref.presets.preset_registry import PRESETS

    config, compute = PRESETS[preset].config, floating_dtype(dtype)
    form, rng, threads = weight_packing.FORMATS[compute], np.random.default_rng(0), numba.get_num_threads()
    m, d, f, heads, width = tokens, config.hidden_dim, config.intermediate_dim, config.num_heads, config.head_dim
    rounding = {"float32": linear.FLOAT32, "bfloat16": linear.BFLOAT16, "float16": linear.FLOAT16}[dtype]

    def floats(columns: int) -> Any:
        array = aligned((m, up(columns)), np.float32)
        array[:] = rng.standard_normal(array.shape, np.float32)
        return array

    def rows(columns: int) -> PackedRows:
        return PackedRows(aligned((form.row_elements(m, columns),), form.rows, zeroed=True), m)

    def product(name: str, n: int, k: int, kind: Any, source: PackedRows, out: Any, following: PackedRows) -> Kernel:
        weight = rng.standard_normal((n, k), np.float32) * 0.02
        packed, epilogue = weight_packing.pack(weight, None, compute, compute), Epilogue(kind, x, rounding)
        return Kernel(name, lambda: linear.product(source, packed, epilogue, out, following, sums), 2 * m * n * k)

    x, normed, fused, out = floats(d), floats(d), floats(3 * d), floats(d)
    sums = aligned((threads, linear.SUMS), np.float32)
    context, inner = rows(d), rows(f)
    weights = Norm(np.ones(d, np.float32), np.zeros(d, np.float32), np.float32(1e-5))
    is_real = np.ones((1, up(m)), bool)
    cache = CacheView(
        aligned((heads * up(m) * form.steps(width) * form.width,), form.cache, zeroed=True),
        aligned((heads * up(m) * up(width),), form.cache, zeroed=True),
        up(m),
        is_real,
        is_real.reshape(1, -1, NR).all(-1),
    )
    scratch = AttentionScratch(
        aligned((threads, attention.scratch_floats(width)), np.float32),
        aligned((threads, attention.scratch_operands(form.steps(width), form.width)), form.rows),
    )
    shape, slopes = CallShape(1, m, 0, heads, width), alibi.slopes(heads)
    return [
        tile_alone(form, threads),
        Kernel("layer norm", lambda: norm.norm_rows(x, weights, normed, context, linear.FLOAT32, threads), 0, 2),
        product("query, key, value", 3 * d, d, linear.PLAIN, context, fused, context),
        Kernel("append to cache", lambda: attention.append(fused, shape, cache, context.data, threads)),
        Kernel(
            "attention", lambda: attention.attend(fused, shape, cache, slopes, context, scratch), 2 * m * (m + 1) * d
        ),
        product("output, residual", d, d, linear.RESIDUAL, context, out, context),
        product("up, GELU", f, d, linear.GELU, context, out, inner),
        product("down, residual", d, f, linear.RESIDUAL, inner, out, inner),
    ]


def tile_alone(form: Any, threads: int) -> Kernel:
    """The register tile, repeated over half a slice of one panel, which the first-level cache holds."""
    import numba

    from accel.numba_cpu import microkernel
    from accel.numba_cpu.isa import KC, LDA, MR, NR
    from accel.numba_cpu.weight_packing import aligned

    times, steps = 4000, KC // 2
    a = aligned((threads, MR * LDA * form.width), form.rows, zeroed=True)
    b = aligned((threads, steps * NR * form.width), form.weight, zeroed=True)
    sums = aligned((threads, MR * NR), np.float32, zeroed=True)

    @numba.njit(parallel=True, nogil=True)
    def repeat(a: Any, b: Any, sums: Any, steps: int) -> None:
        for t in numba.prange(len(a)):
            mine, panel, to = a[t], b[t], sums[t]
            for _ in range(times):
                microkernel.tile(MR, mine, 0, panel, 0, to, 0, steps, NR, True)

    operations = 2 * threads * times * MR * NR * steps * form.width
    return Kernel("the tile alone", lambda: repeat(a, b, sums, steps), operations, 0)


if __name__ == "__main__":
    main()
