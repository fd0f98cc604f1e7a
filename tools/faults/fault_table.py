"""The table of the figures, and the faults behind them."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.faults.surfaces import SURFACES
from tools.faults.trials import ACCEPTED, KINDS, Outcome

ROOT = Path(__file__).parents[2]
PAGE, NUMBERS = ROOT / "docs/proof/faults.md", ROOT / "docs/proof/faults.json"
_HEADER = (
    "surface",
    "inputs",
    "refused well or rightly accepted",
    "of these accepted",
    "tracebacks",
    "hangs or killed",
    "accepted wrongly",
    "message of many lines, control characters or more than 1,000 characters",
    "message names neither file nor argument",
)
_INTRODUCTION = """# Faults

`python -m tools.faults` damages files and arguments at random, and counts what the library answers. Each input has {seconds} seconds and {memory} GiB of memory in a
process of its own kind. It is refused well if the error is of a documented class (for a command: the exit code is 2 to 5, or 1 for a program under test that breaks down) and the message is one printable line that names the
file or the argument. What is accepted is compared with an independent reader or with the undamaged original, where there is one. The command was
`python -m tools.faults --inputs {inputs} --seed {seed} --page`; the same seed repeats every input.
[The numbers](faults.json) have each fault, with the index that `--repeat` takes. A surface is left out where its package (h5py, jinja2 or torch) is not installed.

"""


class Results:
    """Counts and faults of a run."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[dict[str, Any]] = []

    def add(self, name: str, index: int, outcome: Outcome) -> None:
        """Count an outcome."""
        counts = self.counts.setdefault(name, Counter())
        counts[outcome.kind] += 1
        counts[ACCEPTED] += outcome.note == ACCEPTED
        if outcome.kind != "good":
            note = outcome.note.encode("unicode_escape").decode()[:400]
            self.faults.append({"surface": name, "index": index, "kind": outcome.kind, "note": note})

    def to_dict(self, seed: int) -> dict[str, Any]:
        """The numbers as JSON."""
        counts = {name: {kind: self.counts[name][kind] for kind in (*KINDS, ACCEPTED)} for name in self._order()}
        return {
            "seed": seed,
            "surfaces": counts,
            "faults": sorted(self.faults, key=lambda f: (f["surface"], f["index"])),
        }

    def table(self) -> str:
        """The table in Markdown."""
        rows = [_row(SURFACES[name].title, self.counts[name]) for name in self._order()]
        return "\n".join([f"| {' | '.join(_HEADER)} |", f"|{'---|' * len(_HEADER)}", *rows]) + "\n"

    def _order(self) -> list[str]:
        return [name for name in SURFACES if name in self.counts]


def _row(title: str, counts: Mapping[str, int]) -> str:
    inputs, good, *faults = sum(counts[kind] for kind in KINDS), *(counts[kind] for kind in KINDS)
    cells = (inputs, good, counts[ACCEPTED], *faults)
    return f"| {title} | {' | '.join(f'{cell:,}' for cell in cells)} |"


def write_page(results: Results, inputs: int, seed: int, seconds: int, memory: int) -> None:
    """Write the page and the numbers, each under a temporary name first."""
    text = _INTRODUCTION.format(inputs=inputs, seed=seed, seconds=seconds, memory=memory // 2**30) + results.table()
    for path, content in ((NUMBERS, json.dumps(results.to_dict(seed), indent=1) + "\n"), (PAGE, text)):
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.write_text(content, "utf-8")
        unfinished.replace(path)
