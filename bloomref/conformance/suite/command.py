"""The run of `bloomref conform`: asks every question, shows the progress on stderr, and prints the report."""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import TextIO

from bloomref.conformance.backends.backend_properties import BACKEND_PROPERTIES
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.diff.cause import cause
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run.failures import Occurrence, failure_lines, groups
from bloomref.conformance.suite.kit import Kit, Options
from bloomref.conformance.suite.workers import Progress, Task, answers
from bloomref.conformance.vectors.topics import TOPICS


def conform(options: Options, as_json: bool, verbose: bool, jobs: int = 1) -> int:
    """Run the kit in `jobs` processes and print the report. Return the exit code: 0 for a success, else 1.

    What the implementation prints goes to stderr with `verbose`, else nowhere.
    """
    with _stdout_for_us(verbose) as stdout:
        kit = Kit(options)
        if not as_json:
            _print(kit.header(), stdout)
        failures, seconds = _ask_everything(kit, jobs, verbose)
        success = kit.finish()
        if as_json:
            report = kit.report.to_dict() | {"failures": [group.line() for group in groups(failures)]}
            report |= {"seconds": {name: round(value, 3) for name, value in seconds.items()}}
            print(json.dumps(report, indent=2), file=stdout)
        else:
            causes = {dtype: partial(cause, subject) for dtype, subject in kit.subjects.items()}
            _print_failures(failures, lambda failure: causes[failure.dtype](failure), stdout)
            _print(["", *kit.report.lines()], stdout)
        if verbose:
            _print(_times(seconds), sys.stderr)
    return 0 if success else 1


def _ask_everything(kit: Kit, jobs: int, verbose: bool) -> tuple[list[Occurrence], Counter[str]]:
    """Ask every question, and add the counts to the report. Return the failures, and seconds by property."""
    failures: list[Occurrence] = []
    seconds: Counter[str] = Counter()
    tasks = [(dtype, question) for dtype in kit.ready() for question in kit.questions()]
    with _progress(len(tasks), verbose) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the implementation are its own affair
        for answer in answers(kit, tasks, jobs, progress):
            for counts in answer.counts:
                kit.report.add(counts)
            failures += answer.failures
            seconds.update(answer.seconds)
    return failures, seconds


# --- output --------------------------------------------------------------------------------


def _print(lines: Sequence[str], file: TextIO) -> None:
    print(*lines, sep="\n", file=file, flush=True)


def _print_failures(failures: list[Occurrence], explain: Callable[[Failure], Sequence[str]], file: TextIO) -> None:
    if failures:
        _print(["", *failure_lines(failures, explain)], file)


def _times(seconds: Counter[str]) -> list[str]:
    """Seconds by property, the slowest first."""
    return [f"{value:8.1f} s  {name}" for name, value in seconds.most_common()] + [
        f"{seconds.total():8.1f} s  in total"
    ]


@contextmanager
def _stdout_for_us(verbose: bool) -> Iterator[TextIO]:
    """Yield the standard output; whatever else is printed inside goes to stderr with `verbose`, else nowhere."""
    sys.stdout.flush()
    ours, elsewhere = os.dup(1), os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(ours, "w", encoding="utf-8") as stdout, os.fdopen(elsewhere, "w", encoding="utf-8") as other:
        os.dup2(elsewhere, 1)  # also for code that is not Python
        try:
            with redirect_stdout(other):
                yield stdout
        finally:
            other.flush()
            os.dup2(ours, 1)


@contextmanager
def _progress(total: int, verbose: bool) -> Iterator[Progress]:
    """Yield a function that shows the progress on stderr.

    It shows a bar, if stderr is a terminal; else, with `verbose`, a line with the time of each question.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_time if verbose else lambda _task, _seconds: None
        return
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("", total=total)
        yield lambda task, seconds: bar.update(row, description=_label(task), advance=int(seconds is not None))


def _print_time(task: Task, seconds: float | None) -> None:
    if seconds is not None:
        print(f"{_label(task)}  {seconds:.1f} s", file=sys.stderr, flush=True)


def _label(task: Task) -> str:
    dtype, question = task
    return f"{dtype}  {question}"


def names() -> list[str]:
    """Names for `--only` and `--case`: properties with their needs, topics of the vectors, fixed cases."""
    every = PROPERTIES | BACKEND_PROPERTIES
    width = max(map(len, every))
    lines = []
    for prop in every.values():
        needs = ", ".join(prop.needs) or "logits"
        adapter = f"; an adapter of {prop.adapter}" if prop.adapter else ""
        lines.append(f"{prop.name:{width}}  {prop.says} (needs {needs}{adapter})")
    lines += [f"{'vectors':{width}}  the test vectors; one topic: {', '.join(f'vectors/{topic}' for topic in TOPICS)}"]
    return [*lines, "", "fixed cases, for --case:", *(f"  {case.name}" for case in FIXED_CASES)]
