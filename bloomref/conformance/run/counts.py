"""Counts of the answers to one property in one dtype, with the reasons of all that are no pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.subject import NotAsked
from bloomref.errors import Unsupported

WORDS = {
    "failed": "fail",
    "waived": "waived",
    "passed": "pass",
    "inconclusive": "inconclusive",
    "refused": "refused",
    "not_asked": "not asked",
}
"""Field of `Counts` -> its word in a report, in the order of a cell."""
VERDICTS = {"failed": "fails", "passed": "holds"} | {
    name: WORDS[name] for name in ("waived", "inconclusive", "refused", "not_asked")
}
JSON_NAMES = {"passed": "held", "used": "excused"}


@dataclass
class Counts:
    """Outcomes of one property in one dtype.

    Args:
        passed, inconclusive, waived, failed: number of cases with each outcome.
        refused: number of cases that the implementation refused with Unsupported.
        not_asked: number of cases that the kit did not ask.
        not_applicable: how many of these say nothing about the implementation (`NotAsked.bounds` is false).
        worst: largest Z of a case that passed.
        reasons: outcome ("inconclusive", "refused", "not_asked", "not_applicable") -> reason -> number of cases.
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
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    not_asked: int = 0
    not_applicable: int = 0

    def record(self, check: Callable[[], float], covering: Iterable[str]) -> Failure | None:
        """Run one check and count its outcome.

        Args:
            check: returns the largest Z, or raises Failure, Inconclusive, NotAsked or Unsupported.
            covering: the waivers that match the question.

        Returns:
            The failure, unless a waiver covers it.
        """
        waivers = list(covering)
        try:
            self.record_pass(check(), waivers)
        except NotAsked as error:
            self.record_not_asked(error, waivers)
        except Unsupported as error:
            self.refused += 1
            self._explain("refused", str(error), 1)
            self._excuse(waivers)
        except Inconclusive as error:
            self.inconclusive += 1
            self._explain("inconclusive", str(error), 1)
        except Failure as failure:
            if not waivers:
                self.failed += 1
                return failure
            self.waived += 1
            self._excuse(waivers)
        return None

    def record_pass(self, worst: float, covering: Iterable[str]) -> None:
        self.passed += 1
        self.worst = max(self.worst, worst)
        self.matched = _sum(self.matched, covering)

    def record_not_asked(self, error: NotAsked, covering: Iterable[str] = (), count: int = 1) -> None:
        """Count cases that the kit did not ask, all for the same reason."""
        self.not_asked += count
        self.not_applicable += 0 if error.bounds else count
        self._explain("not_asked" if error.bounds else "not_applicable", str(error), count)
        self._excuse(covering)

    def _excuse(self, covering: Iterable[str]) -> None:
        """Count the waivers as used. A question without an answer cannot show that they are not needed, either."""
        waivers = list(covering)
        self.matched, self.used = _sum(self.matched, waivers), _sum(self.used, waivers)

    def _explain(self, outcome: str, reason: str, count: int) -> None:
        self.reasons[outcome] = _sum(self.reasons.get(outcome, {}), {reason: count})

    def add(self, other: "Counts") -> None:
        for name in (*WORDS, "not_applicable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst = max(self.worst, other.worst)
        self.matched, self.used = _sum(self.matched, other.matched), _sum(self.used, other.used)
        for outcome, reasons in other.reasons.items():
            self.reasons[outcome] = _sum(self.reasons.get(outcome, {}), reasons)

    @property
    def questions(self) -> int:
        """Number of questions that this implementation can be asked in this dtype."""
        return sum(getattr(self, name) for name in WORDS) - self.not_applicable

    @property
    def verdict(self) -> str:
        """One of: fails, waived, holds, inconclusive, refused, not asked."""
        order = ("failed", "waived", "passed", "inconclusive", "refused")
        return VERDICTS[next((name for name in order if getattr(self, name)), "not_asked")]

    def __str__(self) -> str:
        parts = [f"{getattr(self, name)} {word}" for name, word in WORDS.items() if getattr(self, name)]
        if parts == [f"{self.not_asked} not asked"]:
            return "not asked"
        return ", ".join(parts + [f"Z {self.worst:.2g}"] * bool(self.worst)) or "not asked"

    def to_dict(self) -> dict[str, Any]:
        """One entry of the JSON report. `reasons` are those of all outcomes, `reasons_by_outcome` are separate."""
        values = {JSON_NAMES.get(key, key): value for key, value in asdict(self).items()}
        flat = dict(sum((Counter(reasons) for reasons in self.reasons.values()), Counter[str]()))
        return values | {"reasons": flat, "reasons_by_outcome": self.reasons, "verdict": self.verdict}


def _sum(one: Mapping[str, int], two: Mapping[str, int] | Iterable[str]) -> dict[str, int]:
    return dict(Counter(one) + Counter(two))
