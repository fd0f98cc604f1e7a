"""Check or measure the CuPy backend.

`--check` runs every check that this machine supports, in four stages:

    host        the host code with a fake of CuPy, and these benchmarks
    compiled    NVRTC compiles every kernel for every architecture: no register spills, the expected instructions
    emulated    the kernels run on the CPU, alone and as whole models in the parity suite
    device      on a GPU: the parity suite, the reference's greedy tokens, repeated runs, compute-sanitizer

It prints a table; `--output` writes it as JSON. Exit status: 0 if everything passed, 1 if a check failed, 2 if there is
no GPU and all other checks passed.

`--measure` times decoding and prompts of bloomref, transformers, cuBLAS alone and copies. It checks the logits of each
participant first (see measure.py), and reports which aims hold (see aims.py). The report is written after every figure,
and the same command resumes it. If a command may take only ten minutes, run it three times: the first run measures
copies, cuBLAS and bloomref for every preset and starts with transformers, the second finishes transformers and times
every kernel, the third compiles transformers.

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
    what.add_argument("--measure", action="store_true", help="time bloomref and the other participants")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=stages.STAGES,
        default=list(stages.STAGES),
        help="run only these stages of --check",
    )
    parser.add_argument("--backend", default="cupy", help="cupy, or cupy:1 for the second GPU (default: %(default)s)")
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
    group = parser.add_argument_group("options of --measure")
    group.add_argument("--presets", nargs="+", default=list(MEASURED), help="presets whose dimensions are used")
    group.add_argument("--participants", nargs="+", choices=figures.NAMES, default=list(figures.NAMES))
    group.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    group.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="batch sizes of decoding")
    group.add_argument("--prompt", type=int, default=Job.prompt, help="positions before the decoding steps")
    group.add_argument("--tokens", type=int, default=Job.tokens, help="decoding steps of a timed run")
    group.add_argument("--long", type=int, default=Job.long, help="positions of the timed prompt")
    group.add_argument(
        "--context", type=int, default=Job.context, help="cached positions when single kernels are timed"
    )
    group.add_argument("--runs", type=int, default=Job.runs, help="timed runs; the median is reported")
    group.add_argument("--torch", default=Job.torch, help="torch device; cpu for a dry run")
    group.add_argument("--limit", type=float, default=240.0, help="time limit of a participant in seconds")
    group.add_argument("--fresh", action="store_true", help="ignore the existing report in --output")


def measured(reason: str | None, arguments: argparse.Namespace) -> None:
    """Measure and show the result. Exits with status 2 if there is no device."""
    if reason is not None:
        print(f"device: none ({reason})")
        sys.exit(2)
    table.show(figures.measure(about(reason), arguments), console())


# --- checks ------------------------------------------------------------------------------------------------------


def checked(reason: str | None, arguments: argparse.Namespace) -> list[Result]:
    """Run the checks in order, and write the report after each."""
    results: list[Result] = []
    for check in stages.checks(arguments.backend, reason):
        if check.stage in arguments.stages:
            results.append(stages.run(check))
            print(f"{check.stage}, {check.name}: {results[-1].outcome}, {results[-1].detail}", file=sys.stderr)
            if arguments.output:
                report = {**about(reason), "results": [asdict(result) for result in results]}
                figures.write_whole(arguments.output, report)
    return results


def show(results: list[Result]) -> None:
    table = Table("stage", "check", "outcome", "seconds", "detail", box=None, header_style="bold", pad_edge=False)
    for result in results:
        table.add_row(result.stage, result.name, result.outcome, f"{result.seconds:.1f}", result.detail)
    console().print(table)


# --- both reports ------------------------------------------------------------------------------------------------


def console() -> Console:
    return Console(width=160 if not sys.stdout.isatty() else None, markup=False)


def no_device(backend: str) -> str | None:
    """Return the reason why no GPU can be used on this machine, or None."""
    config = PRESETS["bloom_tiny_udhr"].config
    try:
        registry.choose(backend, config, dtype_policy())
    except Unsupported as error:
        return str(error)
    return None


def about(reason: str | None) -> dict[str, Any]:
    """Return the command, machine, packages and device of a report."""
    return {
        "command": command_line(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": versions((*machine.PACKAGES, *PACKAGES)),
        "device": {"missing": reason} if reason else device(),
    }


def device() -> dict[str, Any]:
    """Return the properties of the GPU. The emulated backend has none."""
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
