"""Where all threads are faster than one: times of the second half of a block, by width and number of rows.

Both run in turns, many times. The table shows the shortest times, which other processes disturb least, and the bytes
that `accel.numba_cpu.sharing` compares with its limit.

Example: python -m benchmarks.threads --dtype float32
"""

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from accel.numba_cpu import make_backend
from benchmarks.floors import cores
from benchmarks.machine import describe_machine

WIDTHS = (128, 256, 384, 512, 768, 1024)
ROWS = (1, 16, 128)
RUNS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--runs", type=int, default=RUNS, help="timed runs of each")
    arguments = parser.parse_args()
    load = describe_machine()["load_average"]
    measured = [measure(width, rows, arguments.dtype, arguments.runs) for width in WIDTHS for rows in ROWS]
    Console().print(table(f"MLP half of a block, {arguments.dtype}, {cores()} cores, load before: {load}", measured))


def measure(width: int, rows: int, dtype: str, runs: int) -> dict[str, Any]:
    """Milliseconds of one call on the caller's thread, and on all."""
    backend = make_backend()
    from accel.numba_cpu import sharing
    from bloomref.config import BloomConfig
    from bloomref.dtypes import dtype_policy
    from bloomref.params import init_params

    policy = dtype_policy(dtype)
    config = BloomConfig(vocabulary_size=64, num_layers=1, num_heads=4, hidden_dim=width, intermediate_dim=4 * width)
    prepared = backend.prepare(init_params(config, 0, policy.variable_dtype), config, policy)
    x = prepared.from_host(np.ones((1, rows, width), policy.compute_dtype))
    limits, seconds = {"one": 1 << 62, "all": 0}, {name: list[float]() for name in ("one", "all")}
    before = sharing.SHARED_FROM
    try:
        for _ in range(runs + 1):
            for name, limit in limits.items():
                sharing.SHARED_FROM = limit  # type: ignore[misc]
                seconds[name].append(_seconds(lambda: prepared.mlp_block(0, x)))
    finally:
        sharing.SHARED_FROM = before  # type: ignore[misc]
    of_model = sharing.Sharing(config, policy.compute_dtype.itemsize)
    return {
        "width": width,
        "rows": rows,
        "megabytes": of_model.mlp_bytes(rows) / 2**20,
        "shared": of_model.mlp(rows) > 1,
        **{name: 1000 * min(times[1:]) for name, times in seconds.items()},  # without the first run
    }


def _seconds(call: Callable[[], Any]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def table(title: str, measured: list[dict[str, Any]]) -> Table:
    shown = Table("width", "rows", "MB read", "one thread, ms", "all, ms", "gain", "shared", title=title)
    for row in measured:
        times = f"{row['one']:.3f}", f"{row['all']:.3f}", f"{row['one'] / row['all']:.2f}"
        shown.add_row(
            str(row["width"]), str(row["rows"]), f"{row['megabytes']:.1f}", *times, "yes" if row["shared"] else "no"
        )
    return shown


if __name__ == "__main__":
    main()
