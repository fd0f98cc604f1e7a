"""The part of the kit that a run asks: `--only` names properties or topics of the vectors, `--case` a fixed case."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.errors import InvalidInput, describe
from bloomref.validation import did_you_mean


@dataclass(frozen=True)
class Selection:
    """The questions of a run; by default all.

    Args:
        only: fnmatch patterns of properties, of "vectors", or of a topic of the vectors: "vectors/lora".
        cases: fnmatch patterns of fixed cases. With these, no drawn case and no vector is asked.
    """

    only: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()

    def check(self, properties: Iterable[str], topics: Iterable[str]) -> None:
        """Refuse a pattern that matches nothing.

        Args:
            properties: names of the properties that the implementation is asked.
            topics: topics of the vectors.

        Raises:
            InvalidInput: for the first one.
        """
        names = [*properties, "vectors", *(f"vectors/{topic}" for topic in topics)]
        _refuse_unknown("--only", self.only, names)
        _refuse_unknown("--case", self.cases, [case.name for case in FIXED_CASES])

    @property
    def is_whole(self) -> bool:
        return not self.only and not self.cases

    def includes(self, name: str) -> bool:
        """True for a property that is asked."""
        return not self.only or _matches(name, self.only)

    def includes_drawn(self, name: str) -> bool:
        """True for a property that is asked on drawn cases."""
        return not self.cases and self.includes(name)

    def includes_topic(self, topic: str) -> bool:
        """True for a topic of the vectors that is asked."""
        return not self.cases and (self.includes("vectors") or _matches(f"vectors/{topic}", self.only))

    def includes_case(self, name: str) -> bool:
        """True for a fixed case that is asked."""
        return not self.cases or _matches(name, self.cases)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_unknown(option: str, patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names) or "bloomref conform --list prints the names"
            raise InvalidInput(describe(option, "a name that the kit has", repr(pattern), hint))
