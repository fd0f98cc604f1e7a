"""`python -m benchmarks.gpu --measure`: every participant in turn, the most important ones of all presets first, and the report.

The report is written after every figure. A run that is started again goes on where the report ends; our own participants are
asked again where their code has changed since.
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
"""One pass over the presets after the other; of each, groups that share a process."""
NAMES = tuple(name for groups in PASSES for group in groups for name in group)
OTHERS = ("copy", "transformers", "transformers-compiled")
"""Who runs no code of ours."""
FLOORS = ("copy", "host-copy")
SETTINGS = ("backend", "dtype", "rows", "prompt", "tokens", "long", "context", "runs", "torch")
Group = tuple[str, tuple[str, ...]]
"""A preset, and participants of one process."""


class Report:
    """What was found so far, and where it is written.

    Args:
        about: the machine and the packages.
        path: None writes nothing.
    """

    def __init__(self, about: dict[str, Any], arguments: argparse.Namespace, path: Path | None) -> None:
        self.about, self.arguments, self.path = about, arguments, path
        self.settings = {name: getattr(arguments, name) for name in SETTINGS}
        self.code = code()
        self.participants: dict[str, dict[str, Any]] = {preset: {} for preset in arguments.presets}

    def go_on(self) -> int:
        """Take over what the file has; how many answers that is.

        Raises:
            InvalidInput: the file is of other settings, packages or another device.
        """
        if self.path is None or not self.path.exists():
            return 0
        known = json.loads(self.path.read_text("utf-8"))
        for name, value in {"settings": self.settings, **self.about}.items():
            if name != "command" and known.get(name) != json.loads(json.dumps(value)):
                raise invalid(
                    "--output", f"a report of the same {name}", f"one of {known.get(name)}", "--fresh begins anew"
                )
        for entry in known["measured"]:
            self.participants[entry["preset"]] = entry["participants"]
        return sum(self.has(preset, name) for preset, found in self.participants.items() for name in found)

    def has(self, preset: str, name: str) -> bool:
        """Whether a participant has come to its end there, with this code."""
        answer = self.participants[preset].get(name, {})
        return bool(answer.get("done")) and answer.get("code", self.code) == self.code

    def begin(self, preset: str, name: str) -> None:
        self.participants[preset][name] = {} if name in OTHERS else {"code": self.code}

    def take(self, preset: str, name: str, figures: dict[str, Any]) -> None:
        """Add figures; tables by the number of rows grow."""
        answer = self.participants[preset][name]
        for what, value in figures.items():
            answer[what] = {**answer.get(what, {}), **value} if isinstance(value, dict) else value
        self.write()

    def entries(self) -> list[dict[str, Any]]:
        return [judged(preset, found, self.arguments) for preset, found in self.participants.items()]

    def as_dict(self) -> dict[str, Any]:
        measured = self.entries()
        judged_aims = aims.judge(measured, self.arguments.dtype)
        return {**self.about, "settings": self.settings, "aims": judged_aims, "measured": measured}

    def write(self) -> None:
        if self.path is not None:
            write_whole(self.path, self.as_dict())


def write_whole(path: Path, report: dict[str, Any]) -> None:
    """Whole, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    partial.replace(path)


def measure(about: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The report, after everything that was asked for and is not in it yet, or as much as there was when it was interrupted."""
    report, console = Report(about, arguments, arguments.output), Console(stderr=True, markup=False, highlight=False)
    if not arguments.fresh and (known := _known(report)):
        console.print(f"{arguments.output.name}: {known} answers are there; it goes on behind them")
    left = list(open_groups(report, arguments))
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as SIGINT: participants end with this process
    with Progress(*columns, console=console) as progress, suppress(KeyboardInterrupt):
        task = progress.add_task("", total=sum(len(names) for _, names in left))
        for preset, names in left:
            _measure_group(report, preset, names, progress, task)
    report.write()
    return report.as_dict()


def _known(report: Report) -> int:
    try:
        return report.go_on()
    except InvalidInput as error:
        sys.exit(str(error))


def open_groups(report: Report, arguments: argparse.Namespace) -> Iterator[Group]:
    """In their order, without those that have answered; floors are measured beside what is judged by them."""
    for groups in PASSES:
        for preset in arguments.presets:
            for group in groups:
                asked = tuple(name for name in group if name in arguments.participants)
                if missing := {name for name in asked if not report.has(preset, name)}:
                    yield preset, tuple(name for name in asked if name in {*missing, *FLOORS})


def _measure_group(report: Report, preset: str, names: tuple[str, ...], progress: Progress, task: Any) -> None:
    progress.update(task, description=f"{preset}: {', '.join(names)}")

    def take(name: str, figures: dict[str, Any]) -> None:
        report.take(preset, name, figures)
        told = {what: value for what, value in figures.items() if what not in ("done", "kernels")}
        for what, value in told.items():
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
    """A short hash of the accelerator's text."""
    files = sorted(path for path in (ROOT / "accel/cupy_gpu").rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


def judged(preset: str, participants: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Fractions of the floor: bytes that a step must read, over the bandwidth of the copy in the same process."""
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
