"""`bloomref vectors`: the language-neutral test cases: write them, check them, ask them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli.shared import Json, print_json, size
from bloomref.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from bloomref.conformance.implementation import Implementation
    from bloomref.conformance.run.results import Report


def command(
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "--output", "-o", metavar="DIR", help="Of the vectors.  [default: specs/vectors]"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing: say what is not as it should be.")] = False,
    implementation: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="Ask this implementation in Python (docs/conformance.md).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Ask a backend of bloomref: numpy, numba.")
    ] = None,
    program: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Ask a program in any language that speaks the protocol.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable.  [default: all that it declares]")] = None,
    waivers: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Known failures, with reasons.")] = None,
    json: Json = False,
) -> None:
    """Write the test vectors of specs/vectors; or check them; or ask an implementation all that it can be asked.

    They are for implementers without Python: JSON and safetensors files, explained in specs/98-vectors.md.

    Exit code 1: --check found something, or the implementation fails a vector.

    Example: bloomref vectors --backend numba --dtype float32
    """
    asked = [name for name in (implementation, backend, program) if name is not None]
    if check and asked:
        raise InvalidInput("--check: expected no implementation beside it")
    if asked:
        from bloomref.conformance.run import resolve

        raise typer.Exit(
            _ask(resolve.implementation_of(implementation, backend, program), dtype, waivers or [], folder, json)
        )
    if dtype or waivers:
        raise InvalidInput("--dtype, --waivers: expected one of --implementation, --backend and --program beside them")
    raise typer.Exit(_check(folder, json) if check else _write(folder, json))


def _write(folder: Path | None, json: bool) -> int:
    from bloomref.conformance.vectors.author import write

    target = folder or _repository()
    with _progress(len(write.AUTHORS)) as tell:
        count = write.write(target, tell)
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

    found = read.locate(folder)
    with _progress(len(write.AUTHORS)) as tell:
        wrong = check.check(found, tell)
    if json:
        print_json({"folder": str(found), "problems": wrong})
    for sentence in [] if json else wrong or [f"{len(read.read(found))} vectors: all as they should be"]:
        typer.echo(sentence)
    return int(bool(wrong))


def _ask(
    implementation: "Implementation", dtypes: list[str] | None, waivers: list[str], folder: Path | None, json: bool
) -> int:
    from bloomref.conformance.run.results import Report
    from bloomref.conformance.run.waivers import Waivers, read_waivers
    from bloomref.conformance.vectors.read import locate
    from bloomref.conformance.vectors.topics import TOPICS

    locate(folder)
    names = tuple(dtypes or implementation.capabilities.dtypes)
    report = Report(implementation.name, dict(implementation.versions()), names, TOPICS, heading="topic")
    with _progress(len(TOPICS) * len(names)) as tell:
        failures = _answers(report, implementation, Waivers(read_waivers(waivers)), folder, tell)
    if json:
        results = report.to_dict()
        topics = {"topics": results.pop("properties"), "failures": failures}
        print_json({key: results[key] for key in ("implementation", "versions", "not_available")} | topics)
    failed = f"{sum(counts.failed for counts in report.counts.values())} answers fail"
    for line in [] if json else (*report.table(), *report.absent, *failures, f"{report.name}: {failed}"):
        typer.echo(line)
    return int(bool(failures))


def _answers(
    report: "Report", implementation: "Implementation", waivers: Any, folder: Path | None, tell: Callable[[str], None]
) -> list[str]:
    """What fails, in words; fills the report."""
    from bloomref.conformance.run.results import Counts
    from bloomref.conformance.subject import Subject
    from bloomref.conformance.vectors.ask import VectorFailure, ask_all

    failures = []
    for subject in (Subject(implementation, dtype) for dtype in report.dtypes):
        reason = subject.unavailable()
        if reason is not None:
            report.absent.append(reason)
            continue
        for topic in report.properties:
            tell(f"{topic}, {subject.dtype}")
            counts = Counts(topic, subject.dtype)
            try:
                ask_all(subject, topic, waivers, counts, folder)
            except VectorFailure as failure:
                failures.append(str(failure))
            report.add(counts)
    return failures


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, if a person is looking."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def tell(what: str) -> None:
            progress.update(task, description=what, advance=1)

        yield tell
