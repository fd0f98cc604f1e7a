"""`python -m tools.seeds`: one run of pytest a seed, failures by name, and results that survive an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import seeds

SUITE = """
from hypothesis import given, strategies as st
import pytest

@given(st.integers(0, 2**64))
def test_holds_for_every_draw(x):
    assert x >= 0

@given(st.lists(st.integers(0, 2**64), min_size=3, max_size=3))
def test_holds_for_no_draw(xs):
    assert sum(xs) < 0

def test_is_skipped():
    pytest.skip("a reason")

@pytest.mark.slow
def test_is_slow():
    assert False
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: takes long\n", "utf-8")
    (tmp_path / "test_it.py").write_text(SUITE, "utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_failure_is_reported_by_name(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "ROOT", suite)
    run = seeds.run_seed(5, ["test_it.py"], workers=0)
    assert (run["seed"], run["passed"], run["failed"], run["skipped"]) == (5, 1, 1, 1)
    assert run["failures"] == ["test_it::test_holds_for_no_draw"]
    assert len(run["messages"]) == 1
    assert "assert" in run["messages"][0]
    assert not (suite / ".hypothesis").exists()  # no example is left for the next seed


@pytest.mark.slow
def test_a_run_without_results_is_a_failure(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "ROOT", suite)
    run = seeds.run_seed(5, ["no_such_file.py"], workers=0)
    assert run["failed"] == 1
    assert "no_such_file.py" in run["failures"][0]


def imitation(ran: list[int], fails: int | None = None) -> Any:
    def run(seed: int, paths: list[str], workers: int, drawn: bool) -> seeds.Run:
        assert paths == ["tests/unit"]
        assert workers == 2
        assert not drawn
        ran.append(seed)
        failures = ["a::test[x|y]"] if seed == fails else []
        return {"seed": seed, "passed": 3, "failed": len(failures), "skipped": 0, "failures": failures, "seconds": 1.5}

    return run


def test_seeds_are_fresh_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(seeds, "run_seed", imitation(ran))
    for _ in range(2):
        assert seeds.main(["--paths", "tests/unit", "--seeds", "4"]) == 0
    assert len(set(ran)) == 8
    del ran[:]
    assert seeds.main(["--paths", "tests/unit", "--seeds", "3", "--first", "7"]) == 0
    assert ran == [7, 8, 9]


def test_a_failure_sets_the_status_and_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seeds, "run_seed", imitation([], fails=8))
    arguments = ["--paths", "tests/unit", "--seeds", "3", "--first", "7", "--output", str(tmp_path / "seeds.md")]
    assert seeds.main(arguments) == 1
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "seeds.md").read_text("utf-8")
    assert shown.splitlines() == [
        "| seed | passed | failed | seconds | failures |",
        "|---|---|---|---|---|",
        "| 7 | 3 | 0 | 1.5 |  |",
        r"| 8 | 3 | 1 | 1.5 | a::test[x\|y] |",
        "| 9 | 3 | 0 | 1.5 |  |",
    ]


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = tmp_path / "seeds.json", []
    arguments = ["--paths", "tests/unit", "--seeds", "5", "--json", str(path)]

    def interrupted(seed: int, paths: list[str], workers: int, drawn: bool) -> seeds.Run:
        if len(ran) == 2:
            raise KeyboardInterrupt
        return imitation(ran)(seed, paths, workers, drawn)

    monkeypatch.setattr(seeds, "run_seed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seeds.main(arguments)
    planned = json.loads(path.read_text("utf-8"))["seeds"]
    monkeypatch.setattr(seeds, "run_seed", imitation(ran))
    assert seeds.main(arguments) == 0
    assert ran == planned
    assert [run["seed"] for run in json.loads(path.read_text("utf-8"))["runs"]] == planned


def test_results_of_other_tests_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps({"paths": ["tests/unit"], "seeds": [1], "runs": []}), "utf-8")
    assert seeds.main(["--paths", "tests/backend", "--json", str(path)]) == 2
    assert "--json: expected a file of the paths tests/backend, got" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-3"])
def test_no_seeds_are_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert seeds.main(["--seeds", count]) == 2
    assert "--seeds: expected a positive number, got" in capsys.readouterr().err


def test_drawn_tests_alone_are_selected_by_hypothesis_mark() -> None:
    assert "not slow and hypothesis" in seeds.command(1, ["tests"], 2, "report.xml", drawn=True)
    assert "not slow" in seeds.command(1, ["tests"], 2, "report.xml")
