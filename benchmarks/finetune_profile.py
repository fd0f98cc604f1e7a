"""Where the time of a LoRA step goes on the Numba backend: processor seconds of each function, without its callees.

The work is that of `benchmarks.finetune`. With NUMBA_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 no thread waits for
another: the seconds are those of the work, also on a busy machine. A function whose time is a matrix product has a
rate beside it: `_linear` (the weights of the blocks, forwards), `_linear_back` (backwards), and the two functions of
the loss over the vocabulary.

Example: NUMBA_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.finetune_profile --layers 4
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.finetune import add_work, write_files
from benchmarks.finetune_child import bloomref_step
from benchmarks.model import model_config

SHOWN = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bloomref-benchmark-") as folder:
        write_files(Path(folder), arguments)
        step = bloomref_step(Path(folder), arguments.dtype)
        step()  # compiles
        profile = cProfile.Profile(process_time)
        profile.runcall(step)
    Console().print(table(profile, operations(arguments)))


def operations(arguments: argparse.Namespace) -> dict[str, int]:
    """Floating-point operations of the products of a function."""
    config = model_config(arguments.preset, arguments.layers)
    rows, targets = arguments.rows * arguments.tokens, arguments.rows * (arguments.tokens - 1)
    weights = config.num_layers * (4 * config.hidden_dim + 2 * config.intermediate_dim) * config.hidden_dim
    blocks, head = 2 * rows * weights, 2 * targets * config.vocabulary_size * config.hidden_dim
    return {"_linear": blocks, "_linear_back": blocks, "_blocks": head, "loss_and_gradients": head}


def table(profile: cProfile.Profile, work: dict[str, int]) -> Table:
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    rows = sorted(((own, calls, place) for place, (_, calls, own, _, _) in stats.items()), reverse=True)
    total = sum(own for own, _, _ in rows)
    report = Table("function", "calls", "s", "share", "GFLOP/s", title=f"one step, {total:.2f} processor seconds")
    for own, calls, (file, _, name) in rows[:SHOWN]:
        rate = f"{work[name] / own / 1e9:.0f}" if name in work else ""
        report.add_row(f"{Path(file).name}: {name}", str(calls), f"{own:.3f}", f"{own / total:.1%}", rate)
    return report


if __name__ == "__main__":
    main()
