"""Failures of a run: equal ones are reported once, with the smallest case."""

import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bloomref.conformance.checks.outcome import RAISED, Failure
from bloomref.conformance.run.texts import shape, short

IN_FULL = 3
"""Number of groups that are reported in full; of the next ones there is one line each."""
LISTED = 12
"""Number of groups that have one line."""
NAMED = 6
"""Number of further cases that a group names."""
REPEAT = "repeat: "
"""Start of the line with the command that repeats a failure; causes that differ in it alone are the same."""
FRAMES = 3
"""Number of calls of a traceback that are shown, the last ones."""
OURS = str(Path(__file__).parents[2])
"""Folder of bloomref."""
THEIRS = ("/_pytest/", "/pluggy/", "/hypothesis/", "<frozen ")


@dataclass(frozen=True)
class Occurrence:
    """A failure and its origin.

    Args:
        source: name of the property, or "vectors".
        origin: name of the fixed case or vector; "drawn" for a drawn case.
        frames: lines of the traceback in files of the implementation.
    """

    failure: Failure
    source: str
    origin: str
    frames: tuple[str, ...] = ()


def occurrence(failure: Failure, source: str, origin: str) -> Occurrence:
    """Return the failure with its origin, and with the implementation's own part of the traceback."""
    cause = failure.__cause__
    return Occurrence(failure, source, origin, own_frames(cause) if cause else ())


def own_frames(error: BaseException) -> tuple[str, ...]:
    """Return the last calls of a traceback in files that belong neither to bloomref nor to the tools that run it."""
    calls = [call for call in traceback.extract_tb(error.__traceback__) if _is_own(call.filename)]
    return tuple(line for call in calls[-FRAMES:] for line in "".join(traceback.format_list([call])).splitlines())


def _is_own(file: str) -> bool:
    return not file.startswith(OURS) and not any(part in file for part in THEIRS)


@dataclass
class Group:
    """Failures of one cause, as far as the texts show: same question, same explanation but for the numbers."""

    members: list[Occurrence] = field(default_factory=list)

    @property
    def first(self) -> Occurrence:
        """The failure with the smallest model and input."""
        return min(self.members, key=lambda member: _size(member.failure))

    def lines(self, causes: Sequence[str] = ()) -> list[str]:
        """The smallest failure in full, the lines about its cause, and the names of the other cases."""
        first = self.first
        lines = str(first.failure).splitlines()
        lines += [
            f"  raised   {line.strip()}" if i == 0 else f"           {line}" for i, line in enumerate(first.frames)
        ]
        lines += [f"  {line}" for line in causes]
        return lines + self._others()

    def line(self) -> str:
        """One line."""
        first = self.first
        more = f" ({_more(self)})" if len(self.members) > 1 else ""
        return f"{first.source} ({first.failure.dtype}, {first.origin}): {short(first.failure.judgement.explanation)}{more}"

    def _others(self) -> list[str]:
        names: dict[str, None] = {}
        first = self.first
        for member in self.members:
            if member is not first:
                dtype = "" if member.failure.dtype == first.failure.dtype else f" in {member.failure.dtype}"
                source = "" if member.source == first.source else f"{member.source}: "
                names[f"{source}{member.origin}{dtype}"] = None
        if not names:
            return []
        more = ", ..." if len(names) > NAMED else ""
        return [f"  ({_more(self)}: {', '.join(list(names)[:NAMED])}{more})"]


def _more(group: Group) -> str:
    count = len(group.members) - 1
    return f"and {count} more case{'s' * (count > 1)}"


def groups(failures: Iterable[Occurrence]) -> list[Group]:
    """Group failures by property, tensor and explanation. The same exception is one group, whatever was asked.

    Of an explanation, the first part decides: "...; more".
    """
    by_key: dict[tuple[str, ...], Group] = {}
    for member in failures:
        judgement = member.failure.judgement
        texts = (judgement.explanation.partition(";")[0].replace(member.failure.dtype, "#"), judgement.name)
        explanation, tensor = (shape(re.sub(r"layers\.\d+", "layers", text)) for text in texts)
        key = (explanation,) if judgement.name == RAISED else (member.source, tensor, explanation)
        by_key.setdefault(key, Group()).members.append(member)
    return list(by_key.values())


def failure_lines(failures: Iterable[Occurrence], cause: Callable[[Failure], Sequence[str]]) -> list[str]:
    """Return the lines about all failures: the first groups in full with the lines of `cause`, then one line each."""
    lines: list[str] = []
    by_cause: dict[tuple[str, ...], str] = {}
    every = groups(failures)
    for group in every[:IN_FULL]:
        causes = tuple(cause(group.first.failure))
        key = tuple(shape(line) for line in causes if not line.startswith(REPEAT))
        same = by_cause.get(key) if key else None
        by_cause.setdefault(key, group.first.source)
        lines += ["", *group.lines([f"cause    as of {same}"] if same else causes)]
    if len(every) > IN_FULL:
        lines += ["", *(group.line() for group in every[IN_FULL : IN_FULL + LISTED])]
    if len(every) > IN_FULL + LISTED:
        lines.append(f"and {len(every) - IN_FULL - LISTED} more kinds of failures (--json has all)")
    return lines[1:]


def _size(failure: Failure) -> tuple[int, ...]:
    config, case = failure.case.config, failure.case
    return (config.num_layers * config.hidden_dim, case.batch * case.time, config.vocabulary_size)
