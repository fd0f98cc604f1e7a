"""Lines of a report: reasons that differ in numbers alone are reported once."""

import re
from collections.abc import Mapping

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:inf|nan|\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?!\w)", re.IGNORECASE)
SHOWN = 4
"""Largest number of reasons in a line; JSON has all."""


def shape(text: str) -> str:
    """Return a text with `#` for each number: texts of equal shape say the same of different cases."""
    return NUMBER.sub("#", text)


def grouped(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return one reason of each shape, with the number of cases of that shape; the most frequent first."""
    by_shape: dict[str, list[str]] = {}
    for reason in reasons:
        by_shape.setdefault(shape(reason), []).append(reason)
    groups = [
        (max(group, key=lambda reason: reasons[reason]), sum(reasons[reason] for reason in group))
        for group in by_shape.values()
    ]
    return sorted(((short(reason), count) for reason, count in groups), key=lambda pair: -pair[1])


def shortened(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the most frequent reasons with their counts; the last one sums up the others."""
    groups = grouped(reasons)
    if len(groups) <= SHOWN + 1:
        return groups
    rest = groups[SHOWN:]
    return [*groups[:SHOWN], (f"{len(rest)} more reasons (--json has all)", sum(count for _, count in rest))]


def listed(reasons: Mapping[str, int]) -> str:
    """Return the most frequent reasons in one line, each with its count."""
    return "; ".join(f"{reason} ({count})" for reason, count in shortened(reasons))


def short(reason: str) -> str:
    """Return the text in one line of at most 200 characters."""
    line = " ".join(reason.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
