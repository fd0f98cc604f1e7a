"""The checks of `python -m benchmarks.gpu --check`, stage by stage. Each is a command that succeeds or fails."""

import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.floors import cores
from benchmarks.gpu.exercise import RACES

ROOT = Path(__file__).parents[2]
KERNELS, BENCHMARKS = "tests/cupy_gpu", "tests/benchmarks"
COMPILED = f"{KERNELS}/test_nvrtc.py"
ARCHS = ("75", "80", "86", "89", "90", "100", "120")
STAGES = ("host", "compiled", "emulated", "device")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
WORKERS = 8
SHOWN = 6000
"""Characters of the output of a failed check that are reported."""
LIMIT = 500
"""Time limit of a check in seconds."""
TOOLS = ("pytest", "hypothesis", "jaxtyping", "beartype")


@dataclass(frozen=True)
class Check:
    """A command that succeeds or fails, one line of the table.

    Args:
        stage: One of STAGES.
        key: Name of the check for `--only`, unique.
        name: What it checks.
        command: The command line.
        missing: Reason why the command cannot run on this machine, or None.
    """

    stage: str
    key: str
    name: str
    command: tuple[str, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """Outcome of a check. `detail` is the last line of its output; `output` is the end of the output if it failed."""

    stage: str
    key: str
    name: str
    outcome: str
    detail: str
    seconds: float
    output: str = ""


# --- checks ------------------------------------------------------------------------------------------------------


def checks(backend: str, reason: str | None) -> list[Check]:
    """Return the checks in order. `reason` says why there is no device; None if there is one."""
    return [*without_device(), *on_device(backend, reason)]


def without_device() -> Iterator[Check]:
    """Yield the checks of the first three stages, each short enough for LIMIT on a machine with few cores."""
    host, measured = files(KERNELS, "test_host*.py"), files(BENCHMARKS, "test_gpu*.py")
    required = ("--require-backend", "cupy-emulated")
    emulator, compiler = missing_tools("emulator_missing"), missing_tools("compiler_missing")
    yield Check("host", "host", "layout, memory, loading, errors", pytest(*host, *measured, *required), emulator)
    for arch in ARCHS:
        others = " or ".join(other for other in ARCHS if other != arch)
        chosen = f"not ({others})" if arch == ARCHS[0] else arch
        yield Check(
            "compiled", f"sm_{arch}", f"every kernel, sm_{arch}", pytest(COMPILED, *required, "-k", chosen), compiler
        )
    for path in files(KERNELS, "test_*.py"):
        if path not in (*host, COMPILED):
            key = Path(path).stem.removeprefix("test_").replace("_", "-")
            name = "known mistakes" if key == "faults" else f"kernels, {key.replace('-', ' ')}"
            yield Check("emulated", key, name, in_parallel(pytest(path, *required)), emulator)
    suite = pytest("tests/backend", "--emulated-cupy", "-k", "emulated", "-m", "not slow")
    yield Check("emulated", "emulated-parity", "parity of whole models", in_parallel(suite), emulator)


def on_device(backend: str, reason: str | None) -> list[Check]:
    suite = in_parallel(pytest("tests/backend", "--require-backend", backend, "-k", f"[{backend}"))
    memcheck = sanitized("memcheck", exercised(backend))
    racecheck = sanitized("racecheck", exercised(backend, *RACES))
    return [
        Check("device", "kernels", "kernels, compiled and run", exercised(backend, "--warm"), reason),
        Check("device", "tokens", "tokens chosen there, 560m", checked("tokens", backend), reason),
        Check("device", "repeat", "bits of repeated runs, 560m", checked("repeat", backend), reason),
        Check("device", "greedy", "greedy tokens, 560m, float32", checked("greedy", backend), reason),
        Check("device", "parity", "parity suite, embedded preset", suite, reason or no_tools()),
        Check("device", "memcheck", "compute-sanitizer memcheck", memcheck, reason or no_sanitizer()),
        Check("device", "racecheck", "compute-sanitizer racecheck", racecheck, reason or no_sanitizer()),
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


def missing_tools(which: str) -> str | None:
    """Return the reason why tests of kernels cannot run here, by a function of tests/cupy_gpu/toolchain.py, or None."""
    if reason := no_tools():
        return reason
    sys.path.append(str(ROOT / KERNELS))
    try:
        reason = getattr(importlib.import_module("toolchain"), which)()
    finally:
        sys.path.pop()
    return reason


# --- running and reporting ---------------------------------------------------------------------------------------


def run(check: Check) -> Result:
    """Run a check, unless something is missing."""
    names = check.stage, check.key, check.name
    if check.missing is not None:
        return Result(*names, NOT_RUN, check.missing, 0.0)
    start = time.perf_counter()
    try:
        done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Result(*names, FAILED, f"ran out of time: {LIMIT} s", float(LIMIT))
    seconds = round(time.perf_counter() - start, 1)
    output = done.stdout.strip() or done.stderr.strip()
    last = output.splitlines()[-1].strip("= ") if output else ""
    if done.returncode == 0:
        return Result(*names, PASSED, last, seconds)
    return Result(*names, FAILED, last, seconds, f"{done.stdout}\n{done.stderr}"[-SHOWN:])


def status(results: Sequence[Result], reason: str | None, left: int) -> int:
    """Return the exit status of the command, with `left` checks to go."""
    if any(result.outcome == FAILED for result in results):
        return 1
    return 2 if reason is not None or left else 0
