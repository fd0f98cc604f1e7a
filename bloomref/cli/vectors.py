"""`bloomref vectors`: write the test vectors, check them, or test an implementation with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli.shared import Json, Keep, Timeout, print_json, size
from bloomref.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from bloomref.conformance.implementation import Implementation
    from bloomref.conformance.run.results import Report


def command(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", "--output", "-o", metavar="DIR", help="Folder of the vectors. Default: specs/vectors."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the folder with new vectors; write nothing.")] = False,
    implementation: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="Test a Python class (docs/conformance.md).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Test a backend of bloomref: numpy, numba, ...")
    ] = None,
    program: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Test a program in any language (docs/adapters.md).")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Dtype to test; repeatable. Default: all supported.")] = None,
    waivers: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Known failures (docs/conformance.md); repeatable.")
    ] = None,
    timeout: Timeout = None,
    keep: Keep = None,
    json: Json = False,
) -> None:
    """Write the test vectors, check them with --check, or test an implementation with them.

    Vectors are JSON and safetensors files for implementers in any language; specs/98-vectors.md explains them.

    Exit code 1 if --check finds a problem, or the implementation fails a vector or breaks down.

    Example: bloomref vectors --backend numba --dtype float32
    """
    is_asked = any(name is not None for name in (implementation, backend, program))
    if check and is_asked:
        raise InvalidInput("--check: expected no implementation, backend or program")
    if is_asked:
        from bloomref.conformance.run import resolve

        target = resolve.implementation_of(implementation, backend, program, timeout or resolve.TIMEOUT, keep)
        raise typer.Exit(_ask(target, dtype, waivers or [], folder, json))
    if dtype or waivers:
        raise InvalidInput("--dtype, --waivers: expected one of --implementation, --backend and --program as well")
    raise typer.Exit(_check(folder, json) if check else _write(folder, json))


def _write(folder: Path | None, json: bool) -> int:
    from bloomref.conformance.vectors.author import write

    target = folder or _repository()
    with _progress(len(write.AUTHORS)) as progress:
        count = write.write(target, progress)
    if json:
        print_json({"folder": str(target), "files": sorted(write.listing(target)), "bytes": count})
    else:
        typer.echo(f"{len(write.listing(target))} files, {size(count)}, written to {target}")
    return 0


def _repository() -> Path:
    from bloomref.conformance.vectors.read import REPOSITORY

    if not REPOSITORY.parent.is_dir():
        raise Unsupported(
            "vectors: an installed package has no specs/vectors to write to; name a folder with --folder DIR"
        )
    return REPOSITORY


def _check(folder: Path | None, json: bool) -> int:
    from bloomref.conformance.vectors import read
    from bloomref.conformance.vectors.author import check, write

    located = read.locate(folder)
    with _progress(len(write.AUTHORS)) as progress:
        problems = check.check(located, progress)
    if json:
        print_json({"folder": str(located), "problems": problems})
    for sentence in [] if json else problems or [f"{len(read.read(located))} vectors are correct"]:
        typer.echo(sentence)
    return int(bool(problems))


def _ask(
    implementation: "Implementation", dtypes: list[str] | None, waivers: list[str], folder: Path | None, json: bool
) -> int:
    from bloomref.conformance.run.results import Report
    from bloomref.conformance.run.waivers import Waivers, read_waivers
    from bloomref.conformance.vectors.read import locate
    from bloomref.conformance.vectors.topics import TOPICS
    from bloomref.dtypes import floating_dtype

    locate(folder)
    for name in dtypes or ():
        floating_dtype(name)  # a misspelled one would be skipped as one that the implementation lacks
    names = tuple(dtypes or implementation.capabilities.dtypes)
    report = Report(implementation.name, dict(implementation.versions()), names, TOPICS, heading="topic")
    with _progress(len(TOPICS) * len(names)) as progress:
        failures = _answers(report, implementation, Waivers(read_waivers(waivers)), folder, progress)
    if json:
        results = report.to_dict()
        topics = {"topics": results.pop("properties"), "failures": failures}
        print_json({key: results[key] for key in ("implementation", "versions", "not_available", "problems")} | topics)
    failed = f"{sum(counts.failed for counts in report.counts.values())} answers fail"
    if not report.counts:
        failed = "nothing was asked"
    problems = list(report.problems.values())
    for line in [] if json else (*report.table(), *report.absent, *failures, *problems, f"{report.name}: {failed}"):
        typer.echo(line)
    return int(bool(failures or problems))


def _answers(
    report: "Report",
    implementation: "Implementation",
    waivers: Any,
    folder: Path | None,
    progress: Callable[[str], None],
) -> list[str]:
    """Test every topic in every dtype, add the counts to the report, and return the failures as text."""
    from bloomref.conformance.run.counts import Counts
    from bloomref.conformance.subject import Subject
    from bloomref.conformance.vectors.ask import failures_of

    failures = []
    for subject in (Subject(implementation, dtype) for dtype in report.dtypes):
        problem, reason = subject.problem(), subject.unavailable()
        if problem is not None:
            report.problems[subject.dtype] = problem
        if reason is not None:
            report.absent.append(reason)
        if problem is not None or reason is not None:
            continue
        for topic in report.properties:
            progress(f"{topic}, {subject.dtype}")
            counts = Counts(topic, subject.dtype)
            failed = failures_of(subject, topic, waivers, counts, folder)
            if failed:
                failed[0].others = tuple(failure.name for failure in failed[1:])
                failures.append(str(failed[0]))
            report.add(counts)
    return failures


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Context manager: a progress bar on stderr, if it is a terminal. It yields a function that advances the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(label: str) -> None:
            bar.update(task, description=label, advance=1)

        yield advance
