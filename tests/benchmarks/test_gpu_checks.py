"""`python -m benchmarks.gpu --check`: stages, exit status, and its own checks on the emulated backend."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.cupy_gpu.prepared import CupyPrepared
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks, exercise, stages
from benchmarks.gpu.stages import FAILED, NOT_RUN, PASSED, Check, Result

EQUAL = "3 tokens after each of 3 prompts, together and alone"
SUCCEEDS, FAILS = (sys.executable, "-c", "print('3 passed')"), (sys.executable, "-c", "raise SystemExit('1 failed')")
SLEEPS = (sys.executable, "-c", "import time; time.sleep(9)")


def some(outcomes: tuple[str, ...]) -> list[Result]:
    return [Result("host", "x", "x", outcome, "", 0.0) for outcome in outcomes]


@pytest.mark.parametrize(
    ("outcomes", "reason", "expected"),
    [
        ((PASSED, PASSED), None, 0),
        ((PASSED, NOT_RUN), None, 0),
        ((PASSED, NOT_RUN), "no GPU", 2),
        ((PASSED, FAILED), None, 1),
        ((FAILED, NOT_RUN), "no GPU", 1),
    ],
)
def test_the_exit_status_reports_failures_and_a_missing_gpu(
    outcomes: tuple[str, ...], reason: str | None, expected: int
) -> None:
    assert stages.status(some(outcomes), reason, left=0) == expected
    assert stages.status(some(outcomes), reason, left=1) == (expected or 2)


@pytest.mark.parametrize(
    ("command", "missing", "outcome", "detail"),
    [
        (SUCCEEDS, None, PASSED, "3 passed"),
        (FAILS, None, FAILED, "1 failed"),
        (FAILS, "no GPU", NOT_RUN, "no GPU"),
    ],
)
def test_a_check_reports_its_outcome_and_last_line(
    command: tuple[str, ...], missing: str | None, outcome: str, detail: str
) -> None:
    result = stages.run(Check("device", "x", "x", command, missing))
    assert (result.outcome, result.detail) == (outcome, detail)


def test_without_a_gpu_the_other_stages_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "no_device", lambda _: "no NVIDIA driver")
    monkeypatch.setattr(stages, "pytest", lambda *_: SUCCEEDS)
    monkeypatch.setattr(stages, "missing_tools", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--check", "--output", str(tmp_path / "report.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "device: none (no NVIDIA driver)" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["device"] == {"missing": "no NVIDIA driver"}
    outcomes = {(result["stage"], result["outcome"]) for result in report["results"]}
    assert outcomes == {("host", "passed"), ("compiled", "passed"), ("emulated", "passed"), ("device", "not run")}


def check_of(key: str, command: tuple[str, ...]) -> Check:
    return Check("device", key, f"the check {key}", command)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that runs `--check` with options, and returns its exit status and its report's outcomes."""
    monkeypatch.setattr(gpu, "no_device", lambda _: None)
    monkeypatch.setattr(gpu, "device", lambda: {"name": "a GPU"})

    def run(*options: str, **commands: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
        monkeypatch.setattr(stages, "checks", lambda *_: [check_of(*item) for item in commands.items()])
        monkeypatch.setattr(sys, "argv", ["gpu", "--check", "--output", str(tmp_path / "report.json"), *options])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        report = json.loads((tmp_path / "report.json").read_text("utf-8"))
        return ended.value.code, {result["key"]: result["outcome"] for result in report["results"]}

    return run


def test_the_same_command_goes_on_where_the_report_ends(reported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has passed is kept; what failed is run again. After a change of the code, all is."""
    assert reported(a=SUCCEEDS, b=FAILS, c=SUCCEEDS) == (1, {"a": PASSED, "b": FAILED, "c": PASSED})
    assert reported(a=FAILS, b=SUCCEEDS, c=FAILS) == (0, {"a": PASSED, "b": PASSED, "c": PASSED})
    assert reported("--fresh", a=FAILS, b=SUCCEEDS) == (1, {"a": FAILED, "b": PASSED})
    monkeypatch.setattr(gpu.figures, "code", lambda: "changed")
    assert reported(a=SUCCEEDS, b=FAILS) == (1, {"a": PASSED, "b": FAILED})


def test_a_budget_starts_no_check_that_may_not_finish(reported: Any) -> None:
    assert reported("--budget", "1", a=SUCCEEDS, b=SUCCEEDS, c=SUCCEEDS) == (2, {"a": PASSED})
    assert reported("--budget", "1", a=SUCCEEDS, b=SUCCEEDS, c=SUCCEEDS) == (2, {"a": PASSED})
    assert reported("--budget", "1000", a=SUCCEEDS, b=SUCCEEDS, c=SUCCEEDS)[0] == 0


def test_checks_are_chosen_by_name(reported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert reported("--only", "b", a=FAILS, b=SUCCEEDS) == (0, {"b": PASSED})
    assert reported("--only", "a", a=SUCCEEDS, b=FAILS) == (0, {"a": PASSED, "b": PASSED})
    assert reported("--only", "x", "b", a=SUCCEEDS, b=SUCCEEDS)[0] == 2
    assert "--only: expected some of a, b, got x" in capsys.readouterr().err


def test_names_of_checks_are_unique_and_every_test_belongs_to_one_check() -> None:
    checks = stages.checks("cupy", None)
    assert len({check.key for check in checks}) == len(checks)
    files = [word for check in checks if check.key != "compiled" for word in check.command if word.endswith(".py")]
    tests = {path.relative_to(stages.ROOT).as_posix() for path in (stages.ROOT / stages.KERNELS).glob("test_*.py")}
    assert tests <= set(files)


def test_a_missing_tool_is_a_check_that_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU may have neither nvdisasm nor all headers: that is no failure of a kernel."""
    toolchain = importlib.import_module("toolchain")
    monkeypatch.setattr(stages, "no_tools", lambda: None)
    monkeypatch.setattr(toolchain, "compiler_missing", lambda: "nvdisasm not installed")
    monkeypatch.setattr(toolchain, "emulator_missing", lambda: None)
    missing = {check.key: check.missing for check in stages.checks("cupy", "no GPU")}
    assert (missing["sm_90"], missing["tensor"], missing["kernels"]) == ("nvdisasm not installed", None, "no GPU")
    monkeypatch.setattr(stages, "no_tools", lambda: "hypothesis not installed")
    assert stages.checks("cupy", None)[0].missing == "hypothesis not installed"


def test_every_command_names_files_that_are_there() -> None:
    words = [word for check in stages.checks("cupy", None) for word in check.command]
    paths = [word.partition("=")[2] or word for word in words if "tests/" in word]
    assert len(paths) > 5
    assert [path for path in paths if not (stages.ROOT / path).exists()] == []


def test_a_failed_check_shows_its_output_and_a_slow_one_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = stages.run(Check("device", "x", "x", FAILS))
    assert "1 failed" in failed.output
    monkeypatch.setattr(stages, "LIMIT", 0.2)
    slow = stages.run(Check("device", "x", "x", SLEEPS))
    assert (slow.outcome, slow.detail) == (FAILED, "ran out of time: 0.2 s")


def test_the_suite_runs_in_several_processes_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has few threads. Missing packages are named."""
    monkeypatch.setattr(stages, "cores", lambda: 16)
    monkeypatch.setattr(stages, "find_spec", lambda _: object())
    together = stages.in_parallel(("pytest",))
    assert together == ("env", "OPENBLAS_NUM_THREADS=2", "OMP_NUM_THREADS=2", "pytest", "-n", "8")
    assert stages.no_tools() is None
    monkeypatch.setattr(stages, "find_spec", lambda _: None)
    assert stages.in_parallel(("pytest",)) == ("pytest",)
    assert stages.no_tools() == "pytest, hypothesis, jaxtyping, beartype not installed: pip install 'bloomref[test]'"


# --- every kernel ------------------------------------------------------------------------------------------------


def kernel_names() -> set[str]:
    return {
        name
        for path in (stages.ROOT / "accel/cupy_gpu/kernels").glob("*.cu")
        for name in re.findall(r"__global__[^;{]*?(\w+)\(\s*const", path.read_text("utf-8"))
    }


def test_compute_sanitizer_runs_every_kernel(
    emulated_backend: str, emulator: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This holds even for the few widths and dtypes of racecheck. The kernels are recorded, not computed."""
    launched: set[str] = set()
    device = checks.random_engine(emulated_backend, checks.config_of(checks.SMALL), "float32").prepared.device
    monkeypatch.setattr(device, "sms", 132)
    monkeypatch.setattr(emulator, "launch", lambda _, launch, *__: launched.add(launch.kernel.expression))
    monkeypatch.setattr(emulator, "capture", lambda _, work: work)
    monkeypatch.setattr(emulator, "download", lambda _, array: np.zeros(array.shape, array.dtype))
    monkeypatch.setattr(sys, "argv", ["exercise", "--backend", emulated_backend, *exercise.RACES])
    exercise.main()
    assert capsys.readouterr().out == "head widths 64, 33 in float32, bfloat16\n"
    assert {expression.partition("<")[0] for expression in launched} == kernel_names()
    tiles = {re.sub(r"^.*, (\d+, \d+)>$", r"\1", expression) for expression in launched if "_tensor<" in expression}
    assert tiles == {"32, 1", "32, 2", "64, 1", "64, 2"}


def test_a_process_that_fails_to_warm_the_cache_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"backend: expected one of .*, got 'nobody'"):
        exercise.warm("nobody", (64,), ("float32",))


# --- checks of the device stage, on the emulated backend ---------------------------------------------------------


def test_greedy_tokens_are_compared(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.greedy(emulated_backend, checks.SMALL, tokens=3) == EQUAL
    right = CupyPrepared.step
    monkeypatch.setattr(CupyPrepared, "step", lambda *a: np.roll(right(*a), 1, axis=-1))
    with pytest.raises(AssertionError, match=r"prompt 0: token \d is \d+, the reference's \d+"):
        checks.greedy(emulated_backend, checks.SMALL, tokens=3)


def test_tokens_chosen_on_the_device_are_compared(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test uses only the two choices that are fast in emulation."""
    monkeypatch.setattr(checks, "CHOICES", (checks.Choice(), checks.Choice(0.8, 4, 0.9)))
    summary = checks.tokens(emulated_backend, checks.SMALL, 4)
    assert summary == "4 tokens of 3 rows, 2 choices, float32, bfloat16, float16"
    right = CupyPrepared.step
    monkeypatch.setattr(CupyPrepared, "step", lambda *a: np.roll(right(*a), 1, axis=-1))
    with pytest.raises(AssertionError, match="float32: the host chooses others"):
        checks.tokens(emulated_backend, checks.SMALL, 4)


@pytest.mark.slow
def test_repeated_runs_are_compared(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        checks.repeat(emulated_backend, checks.SMALL) == "4 dtypes, four runs, one without early starts, the same bits"
    )
    runs = iter(["a b c d", "a b x d", "a b c d"])
    monkeypatch.setattr(checks, "digest", lambda *_, **__: next(runs))
    with pytest.raises(AssertionError, match="float32: four runs gave 2 results"):
        checks.repeat(emulated_backend, checks.SMALL)


def test_the_page_lists_every_kernel() -> None:
    """Each step of a kernel has a date or "not yet"."""
    page = (stages.ROOT / "docs/cupy.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert {row[0] for row in rows} == kernel_names()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d|not yet", cell) for row in rows for cell in row[1:])
