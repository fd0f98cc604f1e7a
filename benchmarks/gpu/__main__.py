"""Check or measure the CuPy backend.

`--check` runs every check that this machine supports, in four stages:

    host        the host code with a fake of CuPy, and these benchmarks
    compiled    NVRTC compiles every kernel for every architecture: no register spills, the expected instructions
    emulated    the kernels run on the CPU, alone and as whole models in the parity suite
    device      on a GPU: the parity suite, the reference's greedy tokens, repeated runs, compute-sanitizer

It prints a table; `--output` writes it as JSON after every check, and the same command goes on where that report ends:
what has passed with the same code on the same machine is not run again. A check takes 500 seconds at most. Where a
command may take only ten minutes, `--budget 590` starts no check that may not finish in time. `--only` names checks.
Exit status: 0 if everything passed, 1 if a check failed, 2 if there is no GPU or checks are left, and none failed.

`--measure` times decoding and prompts of bloomref, transformers, cuBLAS alone and copies. It checks the logits of each
participant first (see measure.py), and reports which aims hold (see aims.py). The report is written after every figure,
and the same command resumes it. If a command may take only ten minutes, run it three times: the first run measures
copies, cuBLAS and bloomref for every preset and starts with transformers, the second finishes transformers and times
every kernel, the third compiles transformers.

Examples:
  python -m benchmarks.gpu --check --output gpu-check.json
  python -m benchmarks.gpu --check --stages device --budget 590 --output gpu-check.json
  python -m benchmarks.gpu --check --only kernels tokens repeat
  timeout 590 python -m benchmarks.gpu --measure --output benchmarks/results/gpu.json
  python -m benchmarks.gpu --measure --participants copy bloomref --presets bloom_560m_multi --fresh
  python -m benchmarks.gpu.table benchmarks/results/gpu.json
"""

import argparse
import json
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.gpu import figures, stages, table
from benchmarks.gpu.job import Job
from benchmarks.gpu.paper import PRESETS as MEASURED
from benchmarks.gpu.stages import Check, Result
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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these of --check; a wrong name lists all")
    parser.add_argument(
        "--budget", type=float, default=math.inf, help="seconds after which no check of --check may be running"
    )
    parser.add_argument("--backend", default="cupy", help="cupy, or cupy:1 for the second GPU (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    add_measured(parser)
    arguments = parser.parse_args()
    reason = no_device(arguments.backend)
    if arguments.measure:
        measured(reason, arguments)
        return
    chosen = chosen_checks(reason, arguments, parser)
    results = checked(chosen, about(reason), arguments)
    show(results)
    if left := len(chosen) - len(results):
        print(f"{left} of {len(chosen)} checks are left: the same command goes on")
    print(f"device: none ({reason})" if reason else f"device: {device()['name']}")
    sys.exit(stages.status(results, reason, left))


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
    parser.add_argument("--fresh", action="store_true", help="ignore the existing report in --output")


def measured(reason: str | None, arguments: argparse.Namespace) -> None:
    """Measure and show the result. Exits with status 2 if there is no device."""
    if reason is not None:
        print(f"device: none ({reason})")
        sys.exit(2)
    table.show(figures.measure(about(reason), arguments), console())


# --- checks ------------------------------------------------------------------------------------------------------


def chosen_checks(reason: str | None, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Check]:
    """Return the checks that `--stages` and `--only` choose, in order."""
    checks = stages.checks(arguments.backend, reason)
    keys = [check.key for check in checks]
    if unknown := [name for name in arguments.only or () if name not in keys]:
        parser.error(f"--only: expected some of {', '.join(keys)}, got {', '.join(unknown)}")
    return [
        check
        for check in checks
        if check.stage in arguments.stages and (arguments.only is None or check.key in arguments.only)
    ]


def checked(chosen: list[Check], about: dict[str, Any], arguments: argparse.Namespace) -> list[Result]:
    """Run the checks in order, and write the report after each. Those that passed before are taken from the report."""
    report = {**about, "code": figures.code()}
    passed = {} if arguments.fresh else passed_before(arguments.output, report)
    ends = perf_counter() + arguments.budget
    results: list[Result] = []
    for check in chosen:
        waits = check.key not in passed and check.missing is None
        if waits and results and perf_counter() + stages.LIMIT > ends:
            break
        results.append(passed.get(check.key) or stages.run(check))
        print(f"{check.stage}, {check.name}: {results[-1].outcome}, {results[-1].detail}", file=sys.stderr)
        if arguments.output:
            others = [result for key, result in passed.items() if key not in {result.key for result in results}]
            listed = [asdict(result) for result in (*results, *others)]
            figures.write_whole(arguments.output, {**report, "results": listed})
    return results


def passed_before(path: Path | None, report: dict[str, Any]) -> dict[str, Result]:
    """Return the checks that have passed in an existing report of the same code, machine and packages, by key."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text("utf-8"))
    same = all(before.get(name) == json.loads(json.dumps(report[name])) for name in report if name != "command")
    results = [Result(**result) for result in before["results"]] if same else []
    return {result.key: result for result in results if result.outcome == stages.PASSED}


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
