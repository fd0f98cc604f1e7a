"""The checks of `python -m benchmarks.gpu --check`, stage by stage. Each is a command that succeeds or fails."""

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
"""Characters of the output of a failed check that are reported."""
LIMIT = 400
"""Time limit of a check on a device, in seconds."""
TOOLS = ("pytest", "hypothesis", "jaxtyping", "beartype")


@dataclass(frozen=True)
class Check:
    """A command that succeeds or fails, one line of the table.

    Args:
        stage: One of STAGES.
        name: Name of the check.
        command: The command line.
        missing: Reason why the command cannot run on this machine, or None.
    """

    stage: str
    name: str
    command: tuple[str, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """Outcome of a check. `detail` is the last line of its output; `output` is the end of the output if it failed."""

    stage: str
    name: str
    outcome: str
    detail: str
    seconds: float
    output: str = ""


# --- checks ------------------------------------------------------------------------------------------------------


def checks(backend: str, reason: str | None) -> list[Check]:
    """Return the checks in order. `reason` says why there is no device; None if there is one."""
    host, measured = files(KERNELS, "test_host*.py"), files(BENCHMARKS, "test_gpu*.py")
    others = (f"--ignore={name}" for name in (*host, COMPILED))
    required = ("--require-backend", "cupy-emulated")
    suite = in_parallel(pytest("tests/backend", "--require-backend", backend, "-k", f"[{backend}"))
    return [
        Check("host", "layout, memory, loading, errors", pytest(*host, *measured, *required)),
        Check("compiled", "every kernel, sm_75 to sm_120", pytest(COMPILED, *required)),
        Check("emulated", "every kernel, and known mistakes", pytest(KERNELS, *others, *required)),
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


def in_parallel(tests: tuple[str, ...]) -> tuple[str, ...]:
    """Run tests in several processes if pytest-xdist is installed.

    Most of their time goes to the reference and the compiler.
    """
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


# --- running and reporting ---------------------------------------------------------------------------------------


def run(check: Check) -> Result:
    """Run a check, unless something is missing."""
    if check.missing is not None:
        return Result(check.stage, check.name, NOT_RUN, check.missing, 0.0)
    start, limit = time.perf_counter(), LIMIT if check.stage == "device" else None
    try:
        done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Result(check.stage, check.name, FAILED, f"ran out of time: {limit} s", float(limit or 0))
    seconds = round(time.perf_counter() - start, 1)
    output = done.stdout.strip() or done.stderr.strip()
    last = output.splitlines()[-1].strip("= ") if output else ""
    if done.returncode == 0:
        return Result(check.stage, check.name, PASSED, last, seconds)
    return Result(check.stage, check.name, FAILED, last, seconds, f"{done.stdout}\n{done.stderr}"[-SHOWN:])


def status(results: Sequence[Result], reason: str | None) -> int:
    """Return the exit status of the command."""
    if any(result.outcome == FAILED for result in results):
        return 1
    return 2 if reason is not None else 0
