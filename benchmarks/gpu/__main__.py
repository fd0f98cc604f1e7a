"""Checks the CuPy backend as far as this machine can: host, compiler, emulator, and a GPU where there is one.

    compiled    NVRTC compiles every kernel for every architecture: no spills, the instructions that are expected
    emulated    the same kernels run on the CPU, alone and as whole models under the parity suite
    device      the parity suite on the GPU, the reference's greedy tokens, the same bits in repeated runs, compute-sanitizer

Prints a table; `--output` writes the same as JSON. Exit status: 0 when everything passed, 1 when something failed, 2 when all
that could run without a GPU passed, but there is none.

`--measure` times decoding and prompts beside transformers, cuBLAS alone and a copy, each checked before (see measure.py), and
says which aims hold (aims.py). The report is written after every figure; the same command goes on where it ends. So, where a
command may take ten minutes, the same line three times: the first one gives copies, cuBLAS and bloomref of every preset and begins
with transformers, the second one ends that and times every kernel, the third one compiles transformers.

Examples:
  python -m benchmarks.gpu --check --output gpu-check.json
  timeout 590 python -m benchmarks.gpu --measure --output benchmarks/results/gpu.json
  python -m benchmarks.gpu --measure --participants copy bloomref --presets bloom_560m_multi --fresh
  python -m benchmarks.gpu.table benchmarks/results/gpu.json
"""

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.gpu import figures, stages, table
from benchmarks.gpu.job import Job
from benchmarks.gpu.paper import PRESETS as MEASURED
from benchmarks.gpu.stages import Result
from benchmarks.machine import command_line, versions
from bloomref.dtypes import dtype_policy
from bloomref.errors import Unsupported
from bloomref.presets.preset_registry import PRESETS
from bloomref.runtime import registry

PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cublas")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="run the checks")
    what.add_argument("--measure", action="store_true", help="time it, beside the others")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=stages.STAGES,
        default=list(stages.STAGES),
        help="leave the other stages out",
    )
    parser.add_argument("--backend", default="cupy", help="cupy, or another of several GPUs: cupy:1")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    add_measured(parser)
    arguments = parser.parse_args()
    reason = no_device(arguments.backend)
    if arguments.measure:
        measured(reason, arguments)
        return
    results = checked(reason, arguments)
    show(results)
    print(f"device: none ({reason})" if reason else f"device: {device()['name']}")
    sys.exit(stages.status(results, reason))


def add_measured(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of --measure")
    group.add_argument("--presets", nargs="+", default=list(MEASURED), help="whose dimensions to use")
    group.add_argument("--participants", nargs="+", choices=figures.NAMES, default=list(figures.NAMES))
    group.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    group.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="rows that are decoded together")
    group.add_argument("--prompt", type=int, default=Job.prompt, help="positions before the steps")
    group.add_argument("--tokens", type=int, default=Job.tokens, help="tokens of a timed run")
    group.add_argument("--long", type=int, default=Job.long, help="positions of the prompt whose reading is timed")
    group.add_argument("--context", type=int, default=Job.context, help="columns that the kernels of a step see")
    group.add_argument("--runs", type=int, default=Job.runs, help="timed runs, of which the median counts")
    group.add_argument("--torch", default=Job.torch, help="where torch computes; cpu for a dry run")
    group.add_argument("--limit", type=float, default=240.0, help="seconds for one participant")
    group.add_argument("--fresh", action="store_true", help="begin anew, whatever --output holds")


def measured(reason: str | None, arguments: argparse.Namespace) -> None:
    """Exits with 2 where there is no device."""
    if reason is not None:
        print(f"device: none ({reason})")
        sys.exit(2)
    found = figures.measure(about(reason), arguments)
    table.show(found, console())


# --- checks ------------------------------------------------------------------------------------------------------


def checked(reason: str | None, arguments: argparse.Namespace) -> list[Result]:
    """Each in turn; the report is written after each."""
    results: list[Result] = []
    for check in stages.checks(arguments.backend, reason):
        if check.stage in arguments.stages:
            results.append(stages.run(check))
            print(f"{check.stage}, {check.name}: {results[-1].outcome}, {results[-1].detail}", file=sys.stderr)
            if arguments.output:
                found = {**about(reason), "results": [asdict(result) for result in results]}
                figures.write_whole(arguments.output, found)
    return results


def show(results: list[Result]) -> None:
    table = Table("stage", "check", "outcome", "seconds", "detail", box=None, header_style="bold", pad_edge=False)
    for result in results:
        table.add_row(result.stage, result.name, result.outcome, f"{result.seconds:.1f}", result.detail)
    console().print(table)


# --- what both tell ----------------------------------------------------------------------------------------------


def console() -> Console:
    return Console(width=160 if not sys.stdout.isatty() else None, markup=False)


def no_device(backend: str) -> str | None:
    """Why no GPU can be used here."""
    config = PRESETS["bloom_tiny_udhr"].config
    try:
        registry.choose(backend, config, dtype_policy())
    except Unsupported as error:
        return str(error)
    return None


def about(reason: str | None) -> dict[str, Any]:
    """The command, the machine, the packages and the device of a report."""
    return {
        "command": command_line(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": versions((*machine.PACKAGES, *PACKAGES)),
        "device": {"missing": reason} if reason else device(),
    }


def device() -> dict[str, Any]:
    """Of the GPU; the emulator plays one without CuPy."""
    try:
        import cupy
    except ImportError:
        return {"name": "none: an emulated one"}
    if cupy.cuda.runtime.driverGetVersion() == 0:
        return {"name": "none: an emulated one"}

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "memory_bytes": properties["totalGlobalMem"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }


if __name__ == "__main__":
    main()
