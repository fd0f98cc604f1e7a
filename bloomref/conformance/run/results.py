"""The report of a run: a table of counts with a reason for each cell that is no pass, and a verdict for each dtype."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bloomref.conformance.run import verdicts
from bloomref.conformance.run.counts import WORDS, Counts
from bloomref.conformance.run.texts import shape, shortened

EXPLAINED = {name: WORDS[name] for name in ("inconclusive", "refused", "not_asked")} | {"not_applicable": "not asked"}
"""Outcome with reasons (`Counts.reasons`) -> its word."""


@dataclass
class Report:
    """Results of one implementation: a table of properties by dtype, and a verdict for each dtype.

    Args:
        properties: the rows of the table, in their order.
        counts: by property and dtype.
        stale: one sentence for each waiver that is not needed.
        absent: why the implementation is not available here.
        heading: title of the first column.
        problems: dtype -> why not even the plainest model could be loaded, by the implementation's fault.
        whole: the run asked every property, fixed case and vector.
        waived: pattern of a waiver -> its reason.
    """

    name: str
    versions: Mapping[str, str]
    dtypes: tuple[str, ...]
    properties: tuple[str, ...]
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    heading: str = "property"
    problems: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    waived: Mapping[str, str] = field(default_factory=dict)

    def add(self, counts: Counts) -> None:
        self.counts.setdefault((counts.name, counts.dtype), Counts(counts.name, counts.dtype)).add(counts)

    @property
    def matched(self) -> dict[str, int]:
        return dict(sum((Counter(counts.matched) for counts in self.counts.values()), Counter[str]()))

    @property
    def used(self) -> dict[str, int]:
        return dict(sum((Counter(counts.used) for counts in self.counts.values()), Counter[str]()))

    # --- as text --------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """The table with its reasons, then the verdict of each dtype and the waivers that are not needed."""
        verdict_lines = [line for dtype in self.dtypes for line in self.summary(dtype)]
        return [*self.table(), *self.absent, *verdict_lines, *self.stale]

    def table(self) -> list[str]:
        """One row for each property, one column for each dtype; below it, the reason of each cell that is no pass."""
        names = [name for name in self.properties if any((name, dtype) in self.counts for dtype in self.dtypes)]
        if not names:
            return []
        rows = [(self.heading, *self.dtypes)]
        rows += [(name, *(str(self.counts.get((name, dtype), "")) for dtype in self.dtypes)) for name in names]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*table, *self._reasons()]

    def _reasons(self) -> list[str]:
        """One line for each reason, after the cells that have it: `hole (float32 1, bfloat16 7): inconclusive: ...`."""
        lines: dict[str, tuple[str, dict[str, list[str]]]] = {}
        for counts in self._cells():
            for word, reasons in self._explained(counts):
                for reason, count in shortened(reasons):
                    line = lines.setdefault(f"{word} {shape(reason)}", (f"{word}: {reason}", {}))
                    line[1].setdefault(counts.name, []).append(f"{counts.dtype} {count}")
        return [f"{_cells_of(cells)}: {text}" for text, cells in lines.values()]

    def _cells(self) -> list[Counts]:
        keys = [(name, dtype) for dtype in self.dtypes for name in self.properties]
        return [self.counts[key] for key in keys if key in self.counts]

    def _explained(self, counts: Counts) -> Iterator[tuple[str, Mapping[str, int]]]:
        """The outcomes of a cell other than pass, each with its reasons and their counts."""
        if counts.failed:
            yield "fail", {"see the failures": counts.failed}
        if counts.waived:
            yield "waived", {self.waived.get(where, where): count for where, count in counts.used.items()}
        for outcome, word in EXPLAINED.items():
            if outcome in counts.reasons:
                yield word, counts.reasons[outcome]

    def summary(self, dtype: str) -> list[str]:
        """The verdict of a dtype in one line, and a line for each bound of it."""
        if dtype in self.problems:
            return [f"{self.name}, {dtype}: {verdicts.FAILS}: {self.problems[dtype]}"]
        rows = self._rows(dtype)
        totals = {word: sum(getattr(row, name) for row in rows) for name, word in WORDS.items()}
        totals["not asked"] -= sum(row.not_applicable for row in rows)
        numbers = ", ".join(f"{count:,} {word}" for word, count in totals.items() if count)
        questions = f"{sum(row.questions for row in rows):,} questions: {numbers}" if numbers else "nothing was asked"
        line = f"{self.name}, {dtype}: {self.verdict(dtype)} ({questions})"
        return [line, *(f"  {bound}" for bound in verdicts.bounds(rows))]

    def _rows(self, dtype: str) -> list[Counts]:
        return [counts for (_, own), counts in self.counts.items() if own == dtype]

    def verdict(self, dtype: str) -> str:
        """Verdict on the implementation in one dtype (CNF-1 ... CNF-4, CNF-11)."""
        return verdicts.verdict(self._rows(dtype), self.problems.get(dtype), self.whole)

    # --- as JSON --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "implementation": self.name,
            "versions": dict(self.versions),
            "verdicts": {dtype: self.verdict(dtype) for dtype in self.dtypes},
            "bounds": {dtype: verdicts.bounds(self._rows(dtype)) for dtype in self.dtypes},
            "properties": [counts.to_dict() for counts in self.counts.values()],
            "stale_waivers": self.stale,
            "not_available": self.absent,
            "problems": self.problems,
        }


def _cells_of(cells: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{name} ({', '.join(numbers)})" for name, numbers in cells.items())
