"""Run every kernel with small models, for compute-sanitizer.

`--warm` does so in parallel processes, to fill CuPy's kernel cache.

Examples:
  python -m benchmarks.gpu.exercise --backend cupy --warm
  compute-sanitizer --tool racecheck python -m benchmarks.gpu.exercise --backend cupy --widths 64 33 --dtypes float32
  bfloat16
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.checks import CHOICES, DTYPES, chosen, random_engine, some_logits
from bloomref.config import BloomConfig
from bloomref.runtime.backend import Choice

WIDTHS = (64, 80, 96, 128, 33)
RACES = ("--widths", "64", "33", "--dtypes", "float32", "bfloat16")
"""Options for racecheck: every kernel, but not every instantiation, since racecheck is up to a hundred times slower."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="head widths")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--warm", action="store_true", help="run in parallel processes")
    arguments = parser.parse_args()
    run = warm if arguments.warm else exercise
    print(run(arguments.backend, arguments.widths, arguments.dtypes))


def exercise(backend: str, widths: Sequence[int], dtypes: Sequence[str]) -> str:
    """Run all paths, with one row and many, in these dtypes and head widths.

    CuPy's memory pool is off: it hides overruns.
    """
    if backend.partition(":")[0] == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)
    for dtype in dtypes:
        for config in (config for width in widths for config in gemv_configs(width)):
            _run(backend, config, dtype, ((1, 70), (17, 2)), rows=3, choices=CHOICES)
        for config in (config for width in widths for config in tensor_core_configs(width, dtype)):
            _run(backend, config, dtype, ((17, 2), (33, 1)), rows=17, choices=(Choice(),))
    return f"head widths {', '.join(map(str, widths))} in {', '.join(dtypes)}"


def warm(backend: str, widths: Sequence[int], dtypes: Sequence[str]) -> str:
    """Run `exercise` in parallel processes.

    Raises:
        RuntimeError: A process failed; the message is the end of its error output.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.exercise", "--backend", backend]
    parts = [(dtype, part) for dtype in dtypes for part in (widths[:-1], widths[-1:]) if part]
    running = [
        subprocess.Popen(
            [*command, "--dtypes", dtype, "--widths", *map(str, part)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dtype, part in parts
    ]
    words = [process.communicate()[1].strip().splitlines() for process in running]
    for process, said in zip(running, words, strict=True):
        if process.returncode:
            raise RuntimeError(said[-1] if said else "it said nothing")
    return f"{len(parts)} processes"


def gemv_configs(width: int) -> Iterator[BloomConfig]:
    """Yield models whose widths the tensor-core kernels do not support, with both kinds of residual."""
    for post_layernorm in (False, True):
        yield BloomConfig(
            vocabulary_size=301, num_layers=1, num_heads=3, hidden_dim=3 * width, intermediate_dim=150,
            apply_residual_connection_post_layernorm=post_layernorm,
        )  # fmt: skip


def tensor_core_configs(width: int, dtype: str) -> Iterator[BloomConfig]:
    """Yield models that the tensor-core kernels support: one with one weight tile per warp, one with two."""
    if dtype not in ("bfloat16", "float16") or width % 8:
        return
    yield BloomConfig(
        vocabulary_size=301, num_layers=1, num_heads=3, hidden_dim=3 * width, intermediate_dim=152
    )  # fmt: skip
    if width == WIDTHS[0]:
        yield BloomConfig(
            vocabulary_size=4301, num_layers=1, num_heads=22, hidden_dim=22 * width, intermediate_dim=4224
        )  # fmt: skip


def _run(
    backend: str, config: Any, dtype: str, shapes: Sequence[tuple[int, int]], rows: int, choices: Sequence[Choice]
) -> None:
    """Run prompts and steps of these (rows, positions), and choose tokens on the device except in float64."""
    engine = random_engine(backend, config, dtype)
    for batch, prompt in shapes:
        some_logits(engine, batch, prompt, 3)
    if dtype != "float64":
        for choice in choices:
            chosen(engine, choice, 4, rows)


if __name__ == "__main__":
    main()
