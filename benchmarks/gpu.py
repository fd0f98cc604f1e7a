"""Checks the CuPy backend as far as this machine can: host, compiler, emulator, and a GPU where there is one.

    compiled    NVRTC compiles every kernel for every architecture: no spills, the instructions that are expected
    emulated    the same kernels run on the CPU, alone and as whole models under the parity suite
    device      the parity suite on the GPU, the reference's greedy tokens, the same bits in repeated runs, compute-sanitizer

Prints a table; `--output` writes the same as JSON. Exit status: 0 when everything passed, 1 when something failed, 2 when all
that could run without a GPU passed, but there is none.

`--measure` times decoding and prompts beside transformers, cuBLAS alone and a copy, each checked before (see gpu_measure.py).

Examples:
  python -m benchmarks.gpu --check --output gpu-check.json
  python -m benchmarks.gpu --measure --output benchmarks/results/gpu.json
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import gpu_figures, machine
from benchmarks.gpu_kernels import PRESETS as MEASURED
from benchmarks.machine import command_line, versions
from bloomref.dtypes import dtype_policy
from bloomref.errors import Unsupported
from bloomref.presets.registry import PRESETS
from bloomref.runtime import registry

ROOT = Path(__file__).parents[1]
KERNELS = "tests/cupy_gpu"
COMPILED = f"{KERNELS}/test_nvrtc.py"
PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cublas")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Check:
    """One line of the table: a command that succeeds or fails.

    Args:
        stage: compiled, emulated or device, as above; host for what needs none of them.
        missing: why the command cannot run here.
    """

    stage: str
    name: str
    command: tuple[str, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    stage: str
    name: str
    outcome: str
    detail: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="run the checks")
    what.add_argument("--measure", action="store_true", help="time it, beside the others")
    parser.add_argument("--presets", nargs="+", default=list(MEASURED), help="measured: whose dimensions to use")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="measured")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 8, 32], help="measured: rows that are decoded together"
    )
    parser.add_argument("--tokens", type=int, default=64, help="measured: tokens of a timed run")
    parser.add_argument("--runs", type=int, default=5, help="measured: timed runs, of which the median counts")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="leave the other stages out")
    parser.add_argument("--backend", default="cupy", help="cupy, or another of several GPUs: cupy:1")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    reason = no_device(arguments.backend)
    if arguments.measure:
        measured(reason, arguments)
        return
    results = [run(check) for check in checks(arguments.backend, reason) if check.stage in arguments.stages]
    report(results, reason, arguments)
    sys.exit(status(results, reason))


def measured(reason: str | None, arguments: argparse.Namespace) -> None:
    """Exits with 2 where there is no device."""
    if reason is not None:
        print(f"device: none ({reason})")
        sys.exit(2)
    found = gpu_figures.measure(arguments)
    gpu_figures.show(found, Console(width=160 if not sys.stdout.isatty() else None, markup=False))
    if arguments.output:
        report = {**about(reason), "measured": found}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def no_device(backend: str) -> str | None:
    """Why no GPU can be used here."""
    config = PRESETS["bloom_tiny_udhr"].config
    try:
        registry.choose(backend, config, dtype_policy())
    except Unsupported as error:
        return str(error)
    return None


# --- what there is to check --------------------------------------------------------------------------------------


def checks(backend: str, reason: str | None) -> list[Check]:
    """In the order in which they run. `reason`: why there is no device."""
    host = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / KERNELS).glob("test_host*.py"))
    others = (f"--ignore={name}" for name in (*host, COMPILED))
    required = ("--require-backend", "cupy-emulated")
    suite = ("tests/backend", "--require-backend", backend, "-k", f"[{backend}")
    return [
        Check("host", "layout, memory, loading, errors", pytest(*host, *required)),
        Check("compiled", "every kernel, sm_75 to sm_120", pytest(COMPILED, *required)),
        Check("emulated", "every kernel, and planted faults", pytest(KERNELS, *others, *required)),
        Check(
            "emulated",
            "parity of whole models",
            pytest("tests/backend", "--emulated-cupy", "-k", "emulated", "-m", "not slow"),
        ),
        Check("device", "parity suite, embedded preset", pytest(*suite), reason),
        Check("device", "greedy tokens, 560m, float32", checked("greedy", backend), reason),
        Check("device", "tokens chosen there, 560m", checked("tokens", backend), reason),
        Check("device", "bits of repeated runs, 560m", checked("repeat", backend), reason),
        Check("device", "compute-sanitizer memcheck", sanitized("memcheck", backend), reason or no_sanitizer()),
        Check("device", "compute-sanitizer racecheck", sanitized("racecheck", backend), reason or no_sanitizer()),
    ]


STAGES = ("host", "compiled", "emulated", "device")


def pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def checked(name: str, backend: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.gpu_checks", name, "--backend", backend)


def sanitized(tool: str, backend: str) -> tuple[str, ...]:
    return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *checked("exercise", backend))


def no_sanitizer() -> str | None:
    return (
        None
        if shutil.which("compute-sanitizer")
        else "compute-sanitizer is not installed; it comes with the CUDA toolkit"
    )


# --- running them, and telling -----------------------------------------------------------------------------------


def run(check: Check) -> Result:
    if check.missing is not None:
        return Result(check.stage, check.name, NOT_RUN, check.missing, 0.0)
    start = time.perf_counter()
    done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 1)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    outcome = FAILED if done.returncode else PASSED
    return Result(check.stage, check.name, outcome, lines[-1].strip("= ") if lines else "", seconds)


def status(results: Sequence[Result], reason: str | None) -> int:
    if any(result.outcome == FAILED for result in results):
        return 1
    return 2 if reason is not None else 0


def report(results: Sequence[Result], reason: str | None, arguments: argparse.Namespace) -> None:
    table = Table("stage", "check", "outcome", "seconds", "detail", box=None, header_style="bold", pad_edge=False)
    for result in results:
        table.add_row(result.stage, result.name, result.outcome, f"{result.seconds:.1f}", result.detail)
    console = Console(width=160 if not sys.stdout.isatty() else None, markup=False)
    console.print(table)
    console.print(f"device: none ({reason})" if reason else f"device: {device()['name']}")
    if arguments.output:
        arguments.output.write_text(json.dumps(as_dict(results, reason), indent=1) + "\n", "utf-8")


def as_dict(results: Sequence[Result], reason: str | None) -> dict[str, Any]:
    return {**about(reason), "results": [asdict(result) for result in results]}


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
