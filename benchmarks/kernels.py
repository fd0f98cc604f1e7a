"""Where the time of a prompt goes on the Numba backend: each kernel of one block alone, on the CPU.

Every kernel runs several times on random numbers of the preset's sizes; its time is the median. `floor` is what its arithmetic
takes at the rate of the register tile alone, on numbers in the first-level cache: what a kernel takes beyond it is its own cost.

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

from benchmarks.machine import command_line, describe_machine


@dataclass(frozen=True)
class Kernel:
    """One compiled call, how often a block makes it (never: it is there for comparison), and its floating-point operations."""

    name: str
    call: Callable[[], Any]
    operations: int = 0
    times: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bloom_560m_multi", help="whose dimensions to use")
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
    """Median milliseconds, and the rate, of each kernel; the kernels take turns."""
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
    found = Table("kernel", "times", "ms", "floor, ms", "GFLOP/s", title=what)
    for row in rows:
        rate = f"{row['gflop_per_second']:.0f}" if row["gflop_per_second"] else ""
        figures = f"{row['milliseconds']:.2f}", f"{row['floor_milliseconds']:.2f}", rate
        found.add_row(row["kernel"], str(row["times"]), *figures)
    of_a_block = [row for row in rows if row["times"]]
    sums = (sum(row[key] for row in of_a_block) for key in ("milliseconds", "floor_milliseconds"))
    found.add_row("all", "", *(f"{value:.2f}" for value in sums), "")
    return found


def block_kernels(preset: str, dtype: str, tokens: int) -> list[Kernel]:
    """The kernels of one block, in order."""
    from accel.numba_cpu.jit_cache import use_cache_folder

    use_cache_folder()
    import numba

    from accel.numba_cpu import attention, linear, norm, weight_packing
    from accel.numba_cpu.isa import NR
    from bloomref import alibi
    from bloomref.dtypes import floating_dtype
    from bloomref.presets.preset_registry import PRESETS

    config, compute = PRESETS[preset].config, floating_dtype(dtype)
    form, rng, threads = weight_packing.FORMATS[compute], np.random.default_rng(0), numba.get_num_threads()
    m, d, f, heads, width = tokens, config.hidden_dim, config.intermediate_dim, config.num_heads, config.head_dim
    rounding = {"float32": linear.FLOAT32, "bfloat16": linear.BFLOAT16, "float16": linear.FLOAT16}[dtype]

    def floats(columns: int) -> Any:
        found = weight_packing.aligned((m, weight_packing.up(columns)), np.float32)
        found[:] = rng.standard_normal(found.shape, np.float32)
        return found

    def rows(columns: int) -> Any:
        return weight_packing.aligned((form.row_elements(m, columns),), form.rows, zeroed=True)

    def product(name: str, n: int, k: int, after: Any, source: Any, out: Any, following: Any) -> Kernel:
        weight = weight_packing.pack(
            rng.standard_normal((n, k), np.float32) * 0.02, np.zeros(n, np.float32), compute, compute
        )
        fixed = (
            source,
            m,
            weight.panels,
            n,
            form.steps(k),
            weight.bias,
            after,
            x,
            rounding,
            out,
            following,
            sums,
            threads,
        )
        return Kernel(name, lambda: linear.product(*fixed), 2 * m * n * k)

    x, normed, fused, out = floats(d), floats(d), floats(3 * d), floats(d)
    sums = weight_packing.aligned((threads, linear.SUMS), np.float32)
    given, inner = rows(d), rows(f)
    ln = np.ones(d, np.float32), np.zeros(d, np.float32), np.float32(1e-5)
    capacity = weight_packing.up(m)
    keys = weight_packing.aligned((heads * capacity * form.steps(width) * form.width,), form.cache, zeroed=True)
    values = weight_packing.aligned((heads * capacity * weight_packing.up(width),), form.cache, zeroed=True)
    cache = keys, values, capacity
    real = np.ones((1, capacity), bool), np.ones((1, capacity // NR), bool)
    work = weight_packing.aligned((threads, attention.workspace(width)), np.float32)
    tiles = weight_packing.aligned((threads, attention.tile_elements(form.steps(width), form.width)), form.rows)
    sizes = fused, 1, m, heads, width, 0, cache
    attended = real, alibi.slopes(heads), np.float32(width**-0.5), given, work, tiles, threads
    return [
        tile_alone(form, threads),
        Kernel("layer norm", lambda: norm.norm_rows(x, m, d, ln, normed, given, linear.FLOAT32, threads), 0, 2),
        product("query, key, value", 3 * d, d, linear.PLAIN, given, fused, given),
        Kernel("append to cache", lambda: attention.append(*sizes, given, threads)),
        Kernel("attention", lambda: attention.attend(*sizes, *attended), 2 * m * (m + 1) * d),
        product("output, residual", d, d, linear.RESIDUAL, given, out, given),
        product("up, GELU", f, d, linear.GELU, given, out, inner),
        product("down, residual", d, f, linear.RESIDUAL, inner, out, inner),
    ]


def tile_alone(form: Any, threads: int) -> Kernel:
    """The register tile again and again over half a slice of one panel, which leaves room beside it in the first-level cache."""
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
