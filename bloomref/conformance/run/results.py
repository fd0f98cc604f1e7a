"""Counts of the answers to each property, and the report that they make up."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.errors import Unsupported

REASONS = 3
"""Largest number of reasons that are stored for one property."""


@dataclass
class Counts:
    """Outcomes of one property in one dtype.

    Args:
        passed, inconclusive, waived, failed: number of cases with each outcome.
        worst: largest Z of a case that passed.
        reasons: why cases were skipped or inconclusive; the first `REASONS` different ones.
        matched: waiver -> number of answers that it matched.
        used: waiver -> number of failures that it covered.
    """

    name: str
    dtype: str
    passed: int = 0
    inconclusive: int = 0
    waived: int = 0
    failed: int = 0
    worst: float = 0.0
    reasons: list[str] = field(default_factory=list)
    matched: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)

    def record(self, check: Callable[[], float], covering: Iterable[str]) -> Failure | None:
        """Run one check and count its outcome.

        Args:
            check: returns the largest Z, or raises Failure, Inconclusive or Unsupported.
            covering: the waivers that match the question.

        Returns:
            The failure, unless a waiver covers it.
        """
        waivers = list(covering)
        try:
            self.record_pass(check(), waivers)
        except Unsupported as error:
            self.record_skipped(str(error), waivers)
        except Inconclusive as error:
            self.record_inconclusive(str(error))
        except Failure as failure:
            if not waivers:
                self.failed += 1
                return failure
            self.record_waived(waivers)
        return None

    def record_pass(self, worst: float, covering: Iterable[str]) -> None:
        self.passed += 1
        self.worst = max(self.worst, worst)
        self.matched = _sum(self.matched, covering)

    def record_waived(self, covering: Iterable[str]) -> None:
        self.waived += 1
        self.matched, self.used = _sum(self.matched, covering), _sum(self.used, covering)

    def record_skipped(self, reason: str, covering: Iterable[str]) -> None:
        """Count the waivers as used: an unavailable question cannot show that they are not needed."""
        self.add_reason(reason)
        self.matched, self.used = _sum(self.matched, covering), _sum(self.used, covering)

    def record_inconclusive(self, reason: str) -> None:
        self.inconclusive += 1
        self.add_reason(reason)

    def add_reason(self, reason: str) -> None:
        if reason not in self.reasons and len(self.reasons) < REASONS:
            self.reasons.append(reason)

    def add(self, other: "Counts") -> None:
        self.passed += other.passed
        self.inconclusive += other.inconclusive
        self.waived += other.waived
        self.failed += other.failed
        self.worst = max(self.worst, other.worst)
        self.matched, self.used = _sum(self.matched, other.matched), _sum(self.used, other.used)
        for reason in other.reasons:
            self.add_reason(reason)

    @property
    def verdict(self) -> str:
        """One of: fails, waived, holds, inconclusive, not asked."""
        counts = {"fails": self.failed, "waived": self.waived, "holds": self.passed, "inconclusive": self.inconclusive}
        return next((word for word, count in counts.items() if count), "not asked")

    def __str__(self) -> str:
        counts = {"fail": self.failed, "waived": self.waived, "pass": self.passed, "inconclusive": self.inconclusive}
        parts = [f"{count} {word}" for word, count in counts.items() if count]
        return ", ".join(parts + [f"Z {self.worst:.2g}"] * bool(self.worst)) or "not asked"

    def to_dict(self) -> dict[str, Any]:
        """One entry of the JSON report."""
        names = {"passed": "held", "used": "excused"}
        return {names.get(key, key): value for key, value in asdict(self).items()} | {"verdict": self.verdict}


def _sum(one: Mapping[str, int], two: Mapping[str, int] | Iterable[str]) -> dict[str, int]:
    return dict(Counter(one) + Counter(two))


@dataclass
class Report:
    """Results of one implementation: a table of properties by dtype, and a verdict for each dtype.

    Args:
        properties: the rows of the table, in their order.
        counts: by property and dtype.
        stale: one sentence for each waiver that is not needed.
        absent: why the implementation is not available here.
        heading: title of the first column.
    """

    name: str
    versions: Mapping[str, str]
    dtypes: tuple[str, ...]
    properties: tuple[str, ...]
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    heading: str = "property"

    def add(self, counts: Counts) -> None:
        self.counts.setdefault((counts.name, counts.dtype), Counts(counts.name, counts.dtype)).add(counts)

    @property
    def matched(self) -> dict[str, int]:
        return dict(sum((Counter(counts.matched) for counts in self.counts.values()), Counter[str]()))

    @property
    def used(self) -> dict[str, int]:
        return dict(sum((Counter(counts.used) for counts in self.counts.values()), Counter[str]()))

    def lines(self) -> list[str]:
        """The table with its reasons, then the verdict of each dtype and the waivers that are not needed."""
        return [*self.table(), *self.absent, *(self._summary(dtype) for dtype in self.dtypes), *self.stale]

    def table(self) -> list[str]:
        """One row for each property, one column for each dtype; below it, why some were skipped or inconclusive."""
        names = [name for name in self.properties if any((name, dtype) in self.counts for dtype in self.dtypes)]
        rows = [(self.heading, *self.dtypes)]
        rows += [(name, *(str(self.counts.get((name, dtype), "")) for dtype in self.dtypes)) for name in names]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*table, *self._reasons()]

    def _reasons(self) -> list[str]:
        """Each reason once, after the properties that have it."""
        properties: dict[str, list[str]] = {}
        for counts in self.counts.values():
            for reason in counts.reasons[:1] if counts.verdict in ("not asked", "inconclusive") else []:
                properties.setdefault(reason, []).append(f"{counts.name} ({counts.dtype})")
        return [f"{', '.join(names)}: {reason}" for reason, names in properties.items()]

    def _summary(self, dtype: str) -> str:
        verdicts = Counter(counts.verdict for (_, own), counts in self.counts.items() if own == dtype)
        words = {"holds": "pass", "fails": "fail"}  # JSON reports keep the verdicts' own names
        order = ("holds", "waived", "inconclusive", "not asked", "fails")
        summary = ", ".join(f"{verdicts[word]} {words.get(word, word)}" for word in order if verdicts[word])
        return f"{self.name}, {dtype}: {self.verdict(dtype)} ({summary or 'nothing was asked'})"

    def verdict(self, dtype: str) -> str:
        """Verdict on the implementation in one dtype (CNF-1 ... CNF-4)."""
        verdicts = {counts.verdict for (_, own), counts in self.counts.items() if own == dtype}
        if "fails" in verdicts:
            return "does not conform"
        if "holds" not in verdicts:
            return "not checked"
        return "conforms, but for the waivers" if "waived" in verdicts else "conforms"

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "implementation": self.name,
            "versions": dict(self.versions),
            "verdicts": {dtype: self.verdict(dtype) for dtype in self.dtypes},
            "properties": [counts.to_dict() for counts in self.counts.values()],
            "stale_waivers": self.stale,
            "not_available": self.absent,
        }
