"""`python -m benchmarks.gpu --measure`: runs the participants and writes the report.

The most important participants of all presets run first.

The report is written after every figure. Starting the same command again resumes it. bloomref's own participants are
measured again if the accelerator's code has changed.
"""

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.gpu import aims
from benchmarks.gpu.ask import ROOT, ask
from benchmarks.gpu.checks import config_of
from benchmarks.model import sizes
from bloomref.errors import InvalidInput, invalid

PASSES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("copy", "host-copy", "cublas", "bloomref", "bloomref-late", "bloomref-steps", "bloomref-eager"), ("start",)),
    (("transformers",),),
    (("kernels",),),
    (("transformers-compiled",),),
)
"""Successive passes over the presets. Each has groups of participants that share a process."""
NAMES = tuple(name for groups in PASSES for group in groups for name in group)
OTHERS = ("copy", "transformers", "transformers-compiled")
"""Participants that run no code of bloomref."""
FLOORS = ("copy", "host-copy")
"""Participants that give the floors, measured in the process of each group that is compared with them."""
SETTINGS = ("backend", "dtype", "rows", "prompt", "tokens", "long", "context", "runs", "torch")
Group = tuple[str, tuple[str, ...]]
"""A preset, and the participants of one process."""


class Report:
    """The figures so far, and the file that they are written to.

    Args:
        about: Command, machine, packages and device.
        arguments: Arguments of the command.
        path: The file, or None to write nothing.
    """

    def __init__(self, about: dict[str, Any], arguments: argparse.Namespace, path: Path | None) -> None:
        self.about, self.arguments, self.path = about, arguments, path
        self.settings = {name: getattr(arguments, name) for name in SETTINGS}
        self.code = code()
        self.participants: dict[str, dict[str, Any]] = {preset: {} for preset in arguments.presets}

    def resume(self) -> int:
        """Read the figures of the file, and return the number of finished participants.

        Raises:
            InvalidInput: The file has other settings, packages or another device.
        """
        if self.path is None or not self.path.exists():
            return 0
        known = json.loads(self.path.read_text("utf-8"))
        for name, value in {"settings": self.settings, **self.about}.items():
            if name != "command" and known.get(name) != json.loads(json.dumps(value)):
                raise invalid(
                    "--output", f"a report of the same {name}", f"one of {known.get(name)}", "--fresh starts a new one"
                )
        for entry in known["measured"]:
            self.participants[entry["preset"]] = entry["participants"]
        return sum(self.has(preset, name) for preset, answers in self.participants.items() for name in answers)

    def has(self, preset: str, name: str) -> bool:
        """True if a participant has finished, with this code."""
        answer = self.participants[preset].get(name, {})
        return bool(answer.get("done")) and answer.get("code", self.code) == self.code

    def begin(self, preset: str, name: str) -> None:
        self.participants[preset][name] = {} if name in OTHERS else {"code": self.code}

    def take(self, preset: str, name: str, figures: dict[str, Any]) -> None:
        """Add figures. Tables by number of rows are merged."""
        answer = self.participants[preset][name]
        for what, value in figures.items():
            answer[what] = {**answer.get(what, {}), **value} if isinstance(value, dict) else value
        self.write()

    def entries(self) -> list[dict[str, Any]]:
        return [judged(preset, answers, self.arguments) for preset, answers in self.participants.items()]

    def as_dict(self) -> dict[str, Any]:
        measured = self.entries()
        judged_aims = aims.judge(measured, self.arguments.dtype)
        return {**self.about, "settings": self.settings, "aims": judged_aims, "measured": measured}

    def write(self) -> None:
        if self.path is not None:
            write_whole(self.path, self.as_dict())


def write_whole(path: Path, report: dict[str, Any]) -> None:
    """Write a report atomically."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    partial.replace(path)


def measure(about: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing in the report, and return the report. An interrupt ends the measurement early."""
    report, console = Report(about, arguments, arguments.output), Console(stderr=True, markup=False, highlight=False)
    if not arguments.fresh and (finished := _resumed(report)):
        console.print(f"{arguments.output.name}: resumed; {finished} participants are finished")
    left = list(open_groups(report, arguments))
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as SIGINT, so that child processes end
    with Progress(*columns, console=console) as progress, suppress(KeyboardInterrupt):
        task = progress.add_task("", total=sum(len(names) for _, names in left))
        for preset, names in left:
            _measure_group(report, preset, names, progress, task)
    report.write()
    return report.as_dict()


def _resumed(report: Report) -> int:
    try:
        return report.resume()
    except InvalidInput as error:
        sys.exit(str(error))


def open_groups(report: Report, arguments: argparse.Namespace) -> Iterator[Group]:
    """Yield the groups with unfinished participants, in order.

    Floors are measured again together with the figures that are compared with them.
    """
    for groups in PASSES:
        for preset in arguments.presets:
            for group in groups:
                requested = tuple(name for name in group if name in arguments.participants)
                if missing := {name for name in requested if not report.has(preset, name)}:
                    yield preset, tuple(name for name in requested if name in {*missing, *FLOORS})


def _measure_group(report: Report, preset: str, names: tuple[str, ...], progress: Progress, task: Any) -> None:
    progress.update(task, description=f"{preset}: {', '.join(names)}")

    def take(name: str, figures: dict[str, Any]) -> None:
        report.take(preset, name, figures)
        for what, value in figures.items():
            if what not in ("done", "kernels"):
                progress.console.print(f"{preset}, {name}: {what} {value}")
        if figures.get("done"):
            progress.advance(task)

    for name in names:
        report.begin(preset, name)
    ask(names, lambda left: command(left, preset, report.arguments), report.arguments.limit, take)


def command(names: list[str], preset: str, arguments: argparse.Namespace) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.gpu.measure", *names, "--preset", preset]
    for name in SETTINGS:
        value = getattr(arguments, name)
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def code() -> str:
    """Return a short hash of the accelerator's source."""
    files = sorted(path for path in (ROOT / "accel/cupy_gpu").rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


def judged(preset: str, participants: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a preset's entry in the report, with fractions of the memory floor.

    The floor is the bytes that a step must read over the bandwidth of the copy in the same process.
    """
    rate, config = participants.get("copy", {}).get("bytes_per_second"), sizes(config_of(preset))
    middle = arguments.prompt + arguments.tokens // 2
    floors = (
        {str(rows): config.step_bytes(arguments.dtype, rows, middle) / rate for rows in arguments.rows} if rate else {}
    )
    fractions = {
        name: {rows: floors[rows] / seconds for rows, seconds in answer["step_seconds"].items()}
        for name, answer in participants.items()
        if floors and "step_seconds" in answer
    }
    return {"preset": preset, "floor_seconds": floors, "fractions": fractions, "participants": participants}
