"""`python -m tools.faults`: damage that a seed repeats, and outcomes that are counted by kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomref.errors import BadWeights
from tools.faults import __main__ as program
from tools.faults.damage import damaged_json
from tools.faults.fault_table import Results
from tools.faults.surfaces import SURFACES
from tools.faults.trials import Refused, Trial, attempt, command, outcome


def test_damaged_files_are_refused_or_read_rightly(tmp_path: Path) -> None:
    surface = SURFACES["safetensors"]
    surface.make(tmp_path / "base")
    results = Results()
    for index in range(3):
        results.add(surface.name, index, attempt(surface, tmp_path / "base", tmp_path / f"input-{index}", 0, index))
    assert results.to_dict(0)["surfaces"]["safetensors"]["good"] == 3
    assert "| safetensors | 3 | 3 | 0 | 0 | 0 | 0 | 0 | 0 |" in results.table()


def raising(error: BaseException) -> Any:
    def ask() -> None:
        raise error

    return ask


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (raising(BadWeights("a.json: damaged")), "good"),
        (raising(BadWeights("damaged")), "nameless"),
        (raising(Refused("a.json: of\ntwo lines")), "message"),
        (raising(KeyError("planted")), "traceback"),
        (raising(SystemExit(1)), "traceback"),
        (raising(MemoryError()), "killed"),
        (lambda: "right", "good"),
        (lambda: "other", "wrong"),
    ],
)
def test_an_outcome_is_counted_by_its_kind(ask: Any, kind: str) -> None:
    trial = Trial("a.json damaged", ask, lambda answer: "" if answer == "right" else "it differs", ("a.json",))
    assert outcome(trial).kind == kind


def test_a_planted_traceback_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    surface = SURFACES["safetensors"]
    planted = type(surface)("safetensors", "planted", lambda _: None, lambda *_: Trial("it", raising(KeyError("x"))))
    monkeypatch.setitem(program.SURFACES, "safetensors", planted)
    assert program.main(["--only", "safetensors", "--repeat", "4"]) == 1
    assert "traceback it: KeyError" in capsys.readouterr().out


def test_the_seed_repeats_the_damage() -> None:
    one, same, other = (damaged_json(b'{"a": [1, {"b": "c"}]}', np.random.default_rng(seed)) for seed in (1, 1, 3))
    assert one == same != other


def test_a_command_is_refused_with_its_message() -> None:
    with pytest.raises(Refused, match="no such folder"):
        command(["info", "no such folder"])
    assert "bloom_tiny_udhr" in command(["presets"])
