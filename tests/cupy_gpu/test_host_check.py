"""`python -m benchmarks.gpu --check`: what it runs where, what its exit status means; its own checks on the emulated backend."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.cupy_gpu.prepared import CupyPrepared
from benchmarks import gpu, gpu_checks, gpu_figures
from bloomref.runtime import registry

PLUGIN = Path(__file__).parent / "plugin"
EMULATED = "cupy-emulated"
EQUAL = "3 tokens behind each of 3 prompts, together and alone"
SUCCEEDS, FAILS = (sys.executable, "-c", "print('3 passed')"), (sys.executable, "-c", "raise SystemExit('1 failed')")


@pytest.fixture
def _emulated(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    yield
    sys.modules.pop("emulated_cupy", None)


def some(outcomes: tuple[str, ...]) -> list[gpu.Result]:
    return [gpu.Result("host", "x", outcome, "", 0.0) for outcome in outcomes]


@pytest.mark.parametrize(
    ("outcomes", "reason", "expected"),
    [
        ((gpu.PASSED, gpu.PASSED), None, 0),
        ((gpu.PASSED, gpu.NOT_RUN), None, 0),
        ((gpu.PASSED, gpu.NOT_RUN), "no GPU", 2),
        ((gpu.PASSED, gpu.FAILED), None, 1),
        ((gpu.FAILED, gpu.NOT_RUN), "no GPU", 1),
    ],
)
def test_the_exit_status(outcomes: tuple[str, ...], reason: str | None, expected: int) -> None:
    assert gpu.status(some(outcomes), reason) == expected


@pytest.mark.parametrize(
    ("command", "missing", "outcome", "detail"),
    [
        (SUCCEEDS, None, gpu.PASSED, "3 passed"),
        (FAILS, None, gpu.FAILED, "1 failed"),
        (FAILS, "no GPU", gpu.NOT_RUN, "no GPU"),
    ],
)
def test_a_check(command: tuple[str, ...], missing: str | None, outcome: str, detail: str) -> None:
    result = gpu.run(gpu.Check("device", "x", command, missing))
    assert (result.outcome, result.detail) == (outcome, detail)


def test_without_a_gpu_the_other_stages_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "no_device", lambda _: "no NVIDIA driver")
    monkeypatch.setattr(gpu, "pytest", lambda *_: SUCCEEDS)
    monkeypatch.setattr(sys, "argv", ["gpu", "--check", "--output", str(tmp_path / "report.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "device: none (no NVIDIA driver)" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["device"] == {"missing": "no NVIDIA driver"}
    outcomes = {(result["stage"], result["outcome"]) for result in report["results"]}
    assert outcomes == {("host", "passed"), ("compiled", "passed"), ("emulated", "passed"), ("device", "not run")}


def test_every_command_names_files_that_are_there() -> None:
    words = [word for check in gpu.checks("cupy", None) for word in check.command]
    paths = [word.partition("=")[2] or word for word in words if "tests/" in word]
    assert len(paths) > 5
    assert [path for path in paths if not (gpu.ROOT / path).exists()] == []


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_emulated")
@pytest.mark.slow
def test_a_measurement_where_a_processor_plays_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole course, dry: every process starts, answers, is checked and judged; those that need a GPU say so."""
    words = ["gpu", "--measure", "--backend", EMULATED, "--presets", gpu_checks.SMALL, "--rows", "1", "2"]
    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", [*words, "--tokens", "2", "--runs", "1", "--output", str(report)])
    gpu.main()
    entry = json.loads(report.read_text("utf-8"))["measured"][0]
    ours = {name: answer for name, answer in entry["participants"].items() if name.startswith("bloomref")}
    assert len(ours) == 3
    for name, answer in ours.items():
        assert answer.get("logit_error_rms", 1.0) < 0.05, (name, answer)
        assert {rows for rows, seconds in answer["step_seconds"].items() if seconds > 0} == {"1", "2"}
    assert entry["participants"]["cublas"] == {"absent": f"{EMULATED} is no GPU"}
    assert "absent: small, transformers: " in capsys.readouterr().out


def test_fractions_of_the_floor() -> None:
    arguments = argparse.Namespace(rows=[1, 2], tokens=64, dtype="bfloat16")
    answers = {"a": {"step_seconds": {"1": 1e-3, "2": 2e-3}}, "b": {"absent": "no"}}
    entry = gpu_figures.judged("bloom_560m_multi", answers, {"bytes_per_second": 4e12}, arguments)
    assert entry["floor_seconds"]["1"] == pytest.approx((2 * 559_214_592 + 2 * 24 * 1024 * 64 * 2) / 4e12)
    assert entry["fractions"] == {
        "a": {rows: entry["floor_seconds"][rows] / s for rows, s in answers["a"]["step_seconds"].items()}
    }


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ('{"logit_error_rms": 0.2}', "logits off by 20.0%"),
        ("", "no answer"),
    ],
)
def test_who_is_wrong_or_silent_is_absent(monkeypatch: pytest.MonkeyPatch, printed: str, expected: str) -> None:
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    arguments = argparse.Namespace(backend="x", dtype="float32", runs=1, tokens=1, rows=[1])
    assert gpu_figures.ask("bloomref", "small", arguments)["absent"].startswith(expected)


def test_nothing_is_measured_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "no_device", lambda _: "no NVIDIA driver")
    monkeypatch.setattr(sys, "argv", ["gpu", "--measure"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "device: none (no NVIDIA driver)" in capsys.readouterr().out


# --- the checks that a GPU has to pass, on a processor that plays one --------------------------------------------


@pytest.mark.usefixtures("_emulated")
def test_greedy_tokens_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.greedy(EMULATED, gpu_checks.SMALL, tokens=3) == EQUAL
    right = CupyPrepared.step
    monkeypatch.setattr(CupyPrepared, "step", lambda *a: np.roll(right(*a), 1, axis=-1))
    with pytest.raises(AssertionError, match=r"prompt 0: token \d is \d+, the reference's \d+"):
        gpu_checks.greedy(EMULATED, gpu_checks.SMALL, tokens=3)


@pytest.mark.usefixtures("_emulated")
def test_tokens_chosen_there_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        gpu_checks.tokens(EMULATED, gpu_checks.SMALL, 4) == "4 tokens of 3 rows, 5 choices, float32, bfloat16, float16"
    )
    right = CupyPrepared.step
    monkeypatch.setattr(CupyPrepared, "step", lambda *a: np.roll(right(*a), 1, axis=-1))
    with pytest.raises(AssertionError, match="float32: the host chooses others"):
        gpu_checks.tokens(EMULATED, gpu_checks.SMALL, 4)


@pytest.mark.usefixtures("_emulated")
@pytest.mark.slow
def test_repeated_runs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.repeat(EMULATED, gpu_checks.SMALL) == "4 dtypes, three runs, the same bits"
    runs = iter(["a b c d", "a b x d"])
    monkeypatch.setattr(gpu_checks, "digest", lambda *_: next(runs))
    with pytest.raises(AssertionError, match="float32: three runs gave 2 results"):
        gpu_checks.repeat(EMULATED, gpu_checks.SMALL)


def test_the_page_tells_of_every_kernel() -> None:
    """And of no device, before one has been there."""
    kernels = {
        name
        for path in (gpu.ROOT / "accel/cupy_gpu/kernels").glob("*.cu")
        for name in re.findall(r"__global__[^;{]*?(\w+)\(\s*const", path.read_text("utf-8"))
    }
    page = (gpu.ROOT / "docs/cupy.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert {row[0] for row in rows} == kernels
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d|not yet", cell) for row in rows for cell in row[1:])
