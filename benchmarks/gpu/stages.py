"""What `python -m benchmarks.gpu --check` runs, stage by stage: commands that succeed or fail."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.floors import cores
from benchmarks.gpu.exercise import RACES

ROOT = Path(__file__).parents[2]
KERNELS, BENCHMARKS = "tests/cupy_gpu", "tests/benchmarks"
COMPILED = f"{KERNELS}/test_nvrtc.py"
STAGES = ("host", "compiled", "emulated", "device")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
WORKERS = 8
SHOWN = 6000
"""Letters of what a failed check said."""
LIMIT = 400
"""Seconds for a check on a device, which others may be waiting for."""
TOOLS = ("pytest", "hypothesis", "jaxtyping", "beartype")


@dataclass(frozen=True)
class Check:
    """One line of the table: a command that succeeds or fails.

    Args:
        stage: compiled, emulated or device (see gpu.py); host for what needs none of them.
        missing: why the command cannot run here.
    """

    stage: str
    name: str
    command: tuple[str, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """`detail`: the last line of what it said; `output`: the end of it, where it failed."""

    stage: str
    name: str
    outcome: str
    detail: str
    seconds: float
    output: str = ""


# --- what there is to check --------------------------------------------------------------------------------------


def checks(backend: str, reason: str | None) -> list[Check]:
    """In the order in which they run. `reason`: why there is no device."""
    host, measured = files(KERNELS, "test_host*.py"), files(BENCHMARKS, "test_gpu*.py")
    others = (f"--ignore={name}" for name in (*host, COMPILED))
    required = ("--require-backend", "cupy-emulated")
    suite = beside_each_other(pytest("tests/backend", "--require-backend", backend, "-k", f"[{backend}"))
    return [
        Check("host", "layout, memory, loading, errors", pytest(*host, *measured, *required)),
        Check("compiled", "every kernel, sm_75 to sm_120", pytest(COMPILED, *required)),
        Check("emulated", "every kernel, and planted faults", pytest(KERNELS, *others, *required)),
        Check(
            "emulated",
            "parity of whole models",
            pytest("tests/backend", "--emulated-cupy", "-k", "emulated", "-m", "not slow"),
        ),
        Check("device", "kernels, compiled and run", exercised(backend, "--warm"), reason),
        Check("device", "parity suite, embedded preset", suite, reason or no_tools()),
        Check("device", "greedy tokens, 560m, float32", checked("greedy", backend), reason),
        Check("device", "tokens chosen there, 560m", checked("tokens", backend), reason),
        Check("device", "bits of repeated runs, 560m", checked("repeat", backend), reason),
        Check(
            "device", "compute-sanitizer memcheck", sanitized("memcheck", exercised(backend)), reason or no_sanitizer()
        ),
        Check(
            "device",
            "compute-sanitizer racecheck",
            sanitized("racecheck", exercised(backend, *RACES)),
            reason or no_sanitizer(),
        ),
    ]


def files(folder: str, pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern))


def pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def checked(name: str, backend: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.gpu.checks", name, "--backend", backend)


def exercised(backend: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.gpu.exercise", "--backend", backend, *options)


def sanitized(tool: str, command: tuple[str, ...]) -> tuple[str, ...]:
    return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *command)


def beside_each_other(tests: tuple[str, ...]) -> tuple[str, ...]:
    """In several processes, where pytest-xdist is: most of their time is the reference's, with few threads each, and the compiler's."""
    if find_spec("xdist") is None:
        return tests
    return ("env", "OPENBLAS_NUM_THREADS=2", "OMP_NUM_THREADS=2", *tests, "-n", str(min(WORKERS, cores())))


def no_tools() -> str | None:
    missing = [name for name in TOOLS if find_spec(name) is None]
    return f"{', '.join(missing)} not installed: pip install 'bloomref[test]'" if missing else None


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
    start, limit = time.perf_counter(), LIMIT if check.stage == "device" else None
    try:
        done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Result(check.stage, check.name, FAILED, f"ran out of time: {limit} s", float(limit or 0))
    seconds = round(time.perf_counter() - start, 1)
    said = done.stdout.strip() or done.stderr.strip()
    last = said.splitlines()[-1].strip("= ") if said else ""
    if done.returncode == 0:
        return Result(check.stage, check.name, PASSED, last, seconds)
    return Result(check.stage, check.name, FAILED, last, seconds, f"{done.stdout}\n{done.stderr}"[-SHOWN:])


def status(results: Sequence[Result], reason: str | None) -> int:
    if any(result.outcome == FAILED for result in results):
        return 1
    return 2 if reason is not None else 0
