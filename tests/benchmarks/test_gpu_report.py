"""The report of `python -m benchmarks.gpu --measure`: order of participants, failures, resuming, aims, tables."""

import argparse
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import aims, figures, table
from benchmarks.gpu.ask import ask
from benchmarks.gpu.figures import Report, measure, open_groups
from benchmarks.gpu.paper import PRESETS

ABOUT = {"command": "python -m benchmarks.gpu", "device": {"name": "a GPU"}}
FIRST, SECOND = PRESETS[:2]


def arguments_of(**changed: Any) -> argparse.Namespace:
    options: dict[str, Any] = {
        "presets": [FIRST, SECOND], "participants": list(figures.NAMES), "backend": "cupy", "dtype": "bfloat16",
        "rows": [1, 32], "prompt": 32, "tokens": 64, "long": 2048, "context": 2048, "runs": 5, "torch": "cuda",
        "limit": 9.0, "fresh": False, "output": None,
    }  # fmt: skip
    return argparse.Namespace(**{**options, **changed})


# --- processes ---------------------------------------------------------------------------------------------------

CHILD = """
import json, os, sys, time
def say(name, **figures): print(json.dumps({"participant": name, "figures": figures}), flush=True)
for name in sys.argv[1:]:
    say(name, process=os.getpid())
    if name == "fails": raise ValueError("for some reason")
    if name == "dies": os.kill(os.getpid(), 11)
    if name == "silent": sys.exit()
    if name == "sleeps": time.sleep(30)
    say(name, seconds=1.0)
    say(name, done=True)
"""


def ask_children(*names: str, limit: float = 9.0) -> dict[str, dict[str, Any]]:
    answers: dict[str, dict[str, Any]] = {name: {} for name in names}
    ask(names, lambda left: [sys.executable, "-c", CHILD, *left], limit, lambda name, new: answers[name].update(new))
    return answers


def test_one_process_runs_all_participants() -> None:
    answers = ask_children("a", "b")
    assert answers["a"]["process"] == answers["b"]["process"]
    assert all(answer["done"] and answer["seconds"] == 1.0 for answer in answers.values())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("fails", "ValueError: for some reason"), ("dies", "it said nothing"), ("silent", "no answer")],
)
def test_a_participant_that_fails_does_not_affect_the_others(name: str, reason: str) -> None:
    """The first figures of the participant stay in the report, and the others continue in another process."""
    answers = ask_children("a", name, "b")
    assert answers[name]["absent"] == reason
    assert answers[name]["done"]
    assert "process" in answers[name]
    assert [answers[other].get("seconds") for other in "ab"] == [1.0, 1.0]
    assert answers["a"]["process"] == answers[name]["process"] != answers["b"]["process"]


def test_a_participant_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    answers = ask_children("a", "sleeps", "b", limit=1.5)
    assert time.monotonic() - began < 15
    assert answers["sleeps"]["absent"] == "ran out of time: 2 s"
    assert answers["b"]["seconds"] == 1.0
    with pytest.raises(ProcessLookupError):
        os.kill(answers["sleeps"]["process"], 0)


# --- order, and resuming -----------------------------------------------------------------------------------------


def test_the_most_important_ones_of_all_presets_come_first() -> None:
    arguments = arguments_of()
    groups = list(open_groups(Report(ABOUT, arguments, None), arguments))
    both = (FIRST, SECOND)
    assert " ".join(groups[0][1]) == "copy host-copy cublas bloomref bloomref-late bloomref-steps bloomref-eager"
    assert [(preset, names[-1]) for preset, names in groups] == [
        *((preset, last) for preset in both for last in ("bloomref-eager", "start")),
        *((preset, last) for last in ("transformers", "kernels", "transformers-compiled") for preset in both),
    ]


def complete(report: Report, preset: str, *names: str) -> None:
    for name in names:
        report.begin(preset, name)
        report.take(preset, name, {"done": True})


def test_a_run_resumes_where_the_report_ends(tmp_path: Path) -> None:
    """Finished participants are skipped, an interrupted one runs again, and so do the floors of its group."""
    path, arguments = tmp_path / "report.json", arguments_of(presets=[FIRST])
    before = Report(ABOUT, arguments, path)
    complete(before, FIRST, "copy", "host-copy", "cublas", "bloomref", "start", "kernels")
    before.begin(FIRST, "transformers")
    before.take(FIRST, "transformers", {"step_seconds": {"1": 1.0}})
    after = Report(ABOUT, arguments, path)
    assert after.resume() == 6
    assert list(open_groups(after, arguments)) == [
        (FIRST, ("copy", "host-copy", "bloomref-late", "bloomref-steps", "bloomref-eager")),
        (FIRST, ("transformers",)),
        (FIRST, ("transformers-compiled",)),
    ]


def test_figures_of_other_code_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for participants that run bloomref; torch and the copy do not depend on its code."""
    path, arguments = tmp_path / "report.json", arguments_of(presets=[FIRST])
    report = Report(ABOUT, arguments, path)
    complete(report, FIRST, *figures.NAMES)
    monkeypatch.setattr(figures, "code", lambda: "other")
    after = Report(ABOUT, arguments, path)
    after.resume()
    names = [names for _, names in open_groups(after, arguments)]
    assert names == [figures.PASSES[0][0], ("start",), ("kernels",)]


def test_the_hash_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    kernel = tmp_path / "accel/cupy_gpu/kernels/a.cu"
    kernel.parent.mkdir(parents=True)
    hashes = []
    for text in ("a", "b", "a"):
        kernel.write_text(text)
        hashes.append(figures.code())
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("about", "changed", "what"),
    [(ABOUT, {"tokens": 8}, "settings"), ({**ABOUT, "device": {"name": "another GPU"}}, {}, "device")],
)
def test_a_report_of_other_settings_or_another_device_is_not_resumed(
    tmp_path: Path, about: dict[str, Any], changed: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    complete(Report(ABOUT, arguments_of(), path), FIRST, "copy")
    arguments = arguments_of(output=path, participants=["copy"], **changed)
    with pytest.raises(
        SystemExit, match=f"--output: expected a report of the same {what}, .*; --fresh starts a new one"
    ):
        measure(about, arguments)
    monkeypatch.setattr(figures, "ask", lambda *_: None)
    arguments.fresh = True
    assert measure(about, arguments)["measured"][0]["participants"] == {"copy": {}}


def test_a_report_of_another_command_line_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    complete(Report(ABOUT, arguments_of(), path), FIRST, "copy")
    assert Report({**ABOUT, "command": "python -m benchmarks.gpu --limit 9"}, arguments_of(), path).resume() == 1


def test_an_interrupt_loses_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is complete after every figure, also with SIGTERM, and rows are added to previous ones."""
    path, written = tmp_path / "report.json", []

    def interrupted(_names: Any, _command: Any, _limit: float, take: Any) -> None:
        for rows in ("1", "32"):
            take("bloomref", {"step_seconds": {rows: 1.0}})
            written.append(
                json.loads(path.read_text("utf-8"))["measured"][0]["participants"]["bloomref"]["step_seconds"]
            )
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(figures, "ask", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = measure(ABOUT, arguments_of(output=path, participants=["bloomref"]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert written == [{"1": 1.0}, {"1": 1.0, "32": 1.0}]
    assert result == json.loads(path.read_text("utf-8"))
    assert result["measured"][0]["participants"]["bloomref"]["step_seconds"] == {"1": 1.0, "32": 1.0}
    assert list(tmp_path.iterdir()) == [path]


# --- figures and aims --------------------------------------------------------------------------------------------

ANSWERS: dict[str, dict[str, Any]] = {
    "copy": {"bytes_per_second": 4e12},
    "host-copy": {"bytes_per_second": 5e10},
    "cublas": {"prefill_seconds": 0.05},
    "bloomref": {"step_seconds": {"1": 4e-3, "32": 8e-3}, "prefill_seconds": 0.1},
    "start": {"load_seconds": 0.4, "weight_bytes": 10**10, "first_token_seconds": 0.09, "first_token_compiled": 0},
    "transformers": {"step_seconds": {"1": 16e-3}},
    "transformers-compiled": {"step_seconds": {"1": 6e-3}, "absent": "ran out of time"},
}


def entry(preset: str = aims.LARGEST, **changed: Any) -> dict[str, Any]:
    return figures.judged(preset, {**ANSWERS, **changed}, arguments_of())


def judged(**changed: Any) -> dict[str, tuple[Any, Any]]:
    judged = aims.judge([entry(**changed)], "bfloat16")
    return {aim["aim"]: (aim["measured"], aim["holds"]) for aim in judged if aim["preset"] == aims.LARGEST}


def test_fractions_are_of_the_floor_of_the_copy() -> None:
    judged_entry = figures.judged(FIRST, ANSWERS, arguments_of())
    assert judged_entry["floor_seconds"]["1"] == pytest.approx((2 * 559_214_592 + 2 * 24 * 1024 * 64 * 2) / 4e12)
    floor = judged_entry["floor_seconds"]
    assert judged_entry["fractions"]["bloomref"] == {"1": floor["1"] / 4e-3, "32": floor["32"] / 8e-3}
    assert figures.judged(FIRST, {**ANSWERS, "copy": {"absent": "no"}}, arguments_of())["fractions"] == {}


def test_aims_hold_or_do_not() -> None:
    outcomes = judged()
    assert outcomes["1 row, fraction of the memory floor"] == (pytest.approx(0.8856, rel=1e-3), True)
    assert outcomes["1 row, times transformers' best mode"] == (pytest.approx(1.5), False)
    assert outcomes["32 rows, times the tokens/s of 1"] == (pytest.approx(16.0), True)
    assert outcomes["prompt, fraction of its products' rate"] == (pytest.approx(0.5), False)
    assert outcomes["loading, times the transfer's seconds"] == (pytest.approx(2.0), False)
    assert outcomes["first token, seconds"] == (0.09, True)


@pytest.mark.parametrize(
    ("changed", "aim", "expected"),
    [
        ({"bloomref": {"step_seconds": {"1": 5e-3}}}, "1 row, fraction of the memory floor", False),
        ({"transformers-compiled": {"absent": "no"}}, "1 row, times transformers' best mode", True),
        ({"bloomref": {"step_seconds": {"1": 4e-3, "32": 13e-3}}}, "32 rows, times the tokens/s of 1", False),
        ({"cublas": {"prefill_seconds": 0.07}}, "prompt, fraction of its products' rate", True),
        ({"host-copy": {"bytes_per_second": 3e10}}, "loading, times the transfer's seconds", True),
        ({"start": {**ANSWERS["start"], "first_token_seconds": 0.11}}, "first token, seconds", False),
        ({"start": {**ANSWERS["start"], "first_token_compiled": 3}}, "first token, seconds", None),
        ({"bloomref": {"absent": "no"}}, "32 rows, times the tokens/s of 1", None),
        ({"copy": {"absent": "no"}}, "1 row, fraction of the memory floor", None),
    ],
)  # fmt: skip
def test_each_aim_can_fail_and_be_missing(changed: dict[str, Any], aim: str, expected: bool | None) -> None:
    assert judged(**changed)[aim][1] is expected


def test_every_preset_has_its_aims_and_another_dtype_none() -> None:
    judged = aims.judge([], "bfloat16")
    assert {aim["preset"] for aim in judged} == set(PRESETS)
    assert {aim["holds"] for aim in judged} == {None}
    fractions = {aim["preset"]: aim["wanted"] for aim in judged if "memory floor" in aim["aim"]}
    assert list(fractions.values()) == sorted(fractions.values()) == [0.60, 0.70, 0.75, 0.80, 0.85]
    assert aims.judge([entry()], "float16") == []


# --- tables ------------------------------------------------------------------------------------------------------


def report(tmp_path: Path) -> Path:
    kernels = [
        {"kernel": "qkv_matvec", "times": 30, "seconds": 4e-5, "bytes": 10**8, "in_cache": False},
        {"kernel": "choose_best", "times": 1, "seconds": 3e-4, "bytes": 8000, "in_cache": True},
    ]
    timed = {"kernels": {"kernels": {"1": kernels}, "kernels_together": {"1": 1.2e-3}}}
    written, path = (
        Report(ABOUT, arguments_of(presets=[aims.LARGEST]), tmp_path / "report.json"),
        tmp_path / "report.json",
    )
    written.participants[aims.LARGEST] = {**ANSWERS, **timed}
    written.write()
    return path


def test_the_tables_are_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["table", str(report(tmp_path))])
    table.main()
    output = capsys.readouterr().out
    assert "bloom_7b_multi, 1 row, context 2048:" in output
    assert "| qkv_matvec | 30 | 40.00 | 100.00 | 62% | 80.0% |" in output
    assert "| choose_best | 1 | 300.00 | 0.01 | 0%* | 20.0% |" in output
    assert "| all, one by one |  | 1500 |  |  | 100.0% |" in output
    assert "| all, as one graph |  | 1200 |  |  | 80.0% |" in output
    assert "| first token, seconds | bloom_7b_multi | at most 0.1 | 0.09 | yes |" in output
    assert re.search(r"\| bloom_7b_multi \| bloomref \| 1 \| 4\.000 \| 250 \| 89% \|", output)
    lines = [line for line in output.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6, 7}


def test_rows_that_were_not_timed_have_no_table(tmp_path: Path) -> None:
    known = json.loads(report(tmp_path).read_text("utf-8"))
    assert len(list(table.sections(known, 1))) == 3
    assert len(list(table.sections(known, 8))) == 2


def test_absent_participants_are_listed(tmp_path: Path) -> None:
    measured = json.loads(report(tmp_path).read_text("utf-8"))["measured"]
    assert table.absent(measured) == [f"{aims.LARGEST}, transformers-compiled: ran out of time"]
