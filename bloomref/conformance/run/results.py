"""Counts of what was asked and answered, and the card that they make up."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Tally:
    """What became of the questions about one property, in one dtype.

    Args:
        worst: the largest Z of a case that held.
        reasons: why a case could not be asked, or not be judged; the first few.
        matched, excused: by waiver, how many answers it matched, and how many failures it covers.
    """

    name: str
    dtype: str
    held: int = 0
    inconclusive: int = 0
    waived: int = 0
    failed: int = 0
    worst: float = 0.0
    reasons: list[str] = field(default_factory=list)
    matched: dict[str, int] = field(default_factory=dict)
    excused: dict[str, int] = field(default_factory=dict)

    def hold(self, worst: float, covering: Iterable[str]) -> None:
        self.held += 1
        self.worst = max(self.worst, worst)
        self.matched = dict(Counter(self.matched) + Counter(covering))

    def excuse(self, covering: Iterable[str]) -> None:
        self.waived += 1
        self.matched = dict(Counter(self.matched) + Counter(covering))
        self.excused = dict(Counter(self.excused) + Counter(covering))

    def set_aside(self, reason: str, covering: Iterable[str]) -> None:
        """What is not available here cannot show whether a waiver is needed."""
        self.remember(reason)
        self.matched = dict(Counter(self.matched) + Counter(covering))
        self.excused = dict(Counter(self.excused) + Counter(covering))

    def remember(self, reason: str) -> None:
        if reason not in self.reasons and len(self.reasons) < 3:
            self.reasons.append(reason)

    def add(self, other: "Tally") -> None:
        self.held += other.held
        self.inconclusive += other.inconclusive
        self.waived += other.waived
        self.failed += other.failed
        self.worst = max(self.worst, other.worst)
        self.matched = dict(Counter(self.matched) + Counter(other.matched))
        self.excused = dict(Counter(self.excused) + Counter(other.excused))
        for reason in other.reasons:
            self.remember(reason)

    @property
    def verdict(self) -> str:
        """fails, waived, holds, inconclusive, or not asked."""
        counts = {"fails": self.failed, "waived": self.waived, "holds": self.held, "inconclusive": self.inconclusive}
        return next((word for word, count in counts.items() if count), "not asked")

    def __str__(self) -> str:
        counts = {"fail": self.failed, "waived": self.waived, "hold": self.held, "inconclusive": self.inconclusive}
        parts = [f"{count} {word}" for word, count in counts.items() if count]
        return ", ".join(parts + [f"Z {self.worst:.2g}"] * bool(self.worst)) or "not asked"


@dataclass
class Card:
    """What an implementation does and does not, in short."""

    name: str
    versions: Mapping[str, str]
    dtypes: tuple[str, ...]
    properties: tuple[str, ...]
    """In the order of the rows."""
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    """Sentences on waivers that are not needed."""
    absent: list[str] = field(default_factory=list)
    """Why nothing could be asked of the implementation here."""
    heading: str = "property"
    """What the rows are."""

    def add(self, tally: Tally) -> None:
        self.tallies.setdefault((tally.name, tally.dtype), Tally(tally.name, tally.dtype)).add(tally)

    @property
    def matched(self) -> dict[str, int]:
        return dict(sum((Counter(tally.matched) for tally in self.tallies.values()), Counter[str]()))

    @property
    def excused(self) -> dict[str, int]:
        return dict(sum((Counter(tally.excused) for tally in self.tallies.values()), Counter[str]()))

    def lines(self) -> list[str]:
        """The table; then why some were not asked, and the verdicts."""
        return [*self.table(), *self.absent, *(self._summary(dtype) for dtype in self.dtypes), *self.stale]

    def table(self) -> list[str]:
        """A row for each property, a column for each dtype; then why some were not asked."""
        names = [name for name in self.properties if any((name, dtype) in self.tallies for dtype in self.dtypes)]
        rows = [(self.heading, *self.dtypes)]
        rows += [(name, *(str(self.tallies.get((name, dtype), "")) for dtype in self.dtypes)) for name in names]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*table, *self._notes()]

    def _notes(self) -> list[str]:
        """Each reason once, behind the properties that have it."""
        found: dict[str, list[str]] = {}
        for tally in self.tallies.values():
            for reason in tally.reasons[:1] if tally.verdict in ("not asked", "inconclusive") else []:
                found.setdefault(reason, []).append(f"{tally.name} ({tally.dtype})")
        return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]

    def _summary(self, dtype: str) -> str:
        counts = Counter(tally.verdict for (_, own), tally in self.tallies.items() if own == dtype)
        said = ", ".join(
            f"{counts[word]} {word}"
            for word in ("holds", "waived", "inconclusive", "not asked", "fails")
            if counts[word]
        )
        return f"{self.name}, {dtype}: {self.verdict(dtype)} ({said or 'nothing was asked'})"

    def verdict(self, dtype: str) -> str:
        """What may be said of the implementation in a dtype."""
        verdicts = {tally.verdict for (_, own), tally in self.tallies.items() if own == dtype}
        if "fails" in verdicts:
            return "does not conform"
        if "holds" not in verdicts:
            return "not checked"
        return "conforms, but for the waivers" if "waived" in verdicts else "conforms"

    def to_dict(self) -> dict[str, Any]:
        return {
            "implementation": self.name,
            "versions": dict(self.versions),
            "verdicts": {dtype: self.verdict(dtype) for dtype in self.dtypes},
            "properties": [asdict(tally) | {"verdict": tally.verdict} for tally in self.tallies.values()],
            "stale_waivers": self.stale,
            "not_available": self.absent,
        }
