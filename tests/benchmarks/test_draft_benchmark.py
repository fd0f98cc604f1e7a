"""`python -m benchmarks.speculation` at a small size: figures are counts of the run, and a difference ends it."""

import json
import sys
from typing import Any

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from benchmarks import speculation
from bloomref.generation import speculation as search

SIZES = ["--prompts=4", "--rows=2", "--tokens=9", "--rounds=1", "--copied=8"]
QUICK = ["--preset=bloom_tiny_udhr", *SIZES, "--acceptance", "0", "1", "--json"]


@pytest.mark.slow
def test_a_quick_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["speculation", *QUICK])
    speculation.main()
    report = json.loads(capsys.readouterr().out)
    assert [row["equal"] for row in report["equality"]] == [4] * 4
    assert all(0 < row["accepted"] <= row["proposed"] for row in report["equality"])
    none, every = report["speed"]
    assert none["tokens_per_pass"] == 1 <= every["tokens_per_pass"]
    assert len(report["prompt_lookup"]) == 3
    speculation.show(report)


def test_a_difference_ends_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that takes every proposal gives another text where the draft is wrong."""

    def extend(self: Any, row: Any, proposed: Any, logits: Any) -> int:
        for token_id, _ in zip([*proposed, 7], logits, strict=False):
            row.append(token_id, self._task.stopping)
            if row.ended:
                break
        return len(proposed)

    monkeypatch.setattr(search._Search, "_extend", extend)
    with pytest.raises(SystemExit, match="expected those of plain decoding"):
        speculation.equality(2)
