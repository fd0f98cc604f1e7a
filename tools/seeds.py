"""Run the fast tests with many random seeds, each in a fresh interpreter: `python -m tools.seeds --help`.

A property test draws different examples with each seed. If the suite passes with some seeds only, a test passes by
chance; this command finds it. Hypothesis stores no examples between the runs, so that the seed alone determines the
examples.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bloomref.errors import InvalidInput, invalid

ROOT = Path(__file__).parents[1]
EXAMPLES = """examples:
  python -m tools.seeds                                     25 fresh seeds, the whole fast suite
  python -m tools.seeds --seeds 3 --paths tests/backend     three fresh seeds, one folder
  python -m tools.seeds --first 7 --seeds 1                 seed 7 again
  python -m tools.seeds --drawn                             the tests with drawn examples alone
  python -m tools.seeds --json seeds.json --output seeds.md
      store the results; the same command resumes an interrupted run
"""
HEADER = ("seed", "passed", "failed", "seconds", "failures")
Run = dict[str, Any]
"""Result of one seed: `seed`, `passed`, `failed`, `skipped` (counts), `seconds`,
`failures`, the ids of the failed tests, and `messages`, the end of what each of them printed.
"""
MESSAGE = 1500  # characters of a failure's text to store


def command(seed: int, paths: Sequence[str], workers: int, report: Path | str, drawn: bool = False) -> list[str]:
    """Command line of pytest for one seed. pytest writes its results to `report`, as JUnit XML."""
    marks = "not slow and hypothesis" if drawn else "not slow"
    chosen = ["-q", "-n", str(workers), "-m", marks, f"--hypothesis-seed={seed}", f"--junit-xml={report}"]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, *paths]


def run_seed(seed: int, paths: Sequence[str], workers: int, drawn: bool = False) -> Run:
    """Run the tests with one seed. If pytest ends without a report, that counts as one failure."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis")}
        call = command(seed, paths, workers, report, drawn)
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        counts = read_report(report.read_text("utf-8")) if report.exists() else no_results()
    if done.returncode and not counts["failures"]:
        counts["failures"] = [
            f"pytest ended with status {done.returncode}: {(done.stdout + done.stderr)[-500:].strip()}"
        ]
        counts["failed"] = 1
    return {"seed": seed, **counts, "seconds": round(time.perf_counter() - begin, 1)}


def no_results() -> Run:
    """Counts of a run without any test."""
    return {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "messages": []}


def read_report(xml: str) -> Run:
    """Read the counts, and the ids and messages of failed tests, from JUnit XML."""
    counts = no_results()
    for case in ElementTree.fromstring(xml).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
            counts["messages"] += [text[-MESSAGE:] for child in case if (text := child.text or "")]
            counts["failures"].append(f"{case.get('classname', '')}::{case.get('name', '')}")
        else:
            counts["skipped" if "skipped" in kinds else "passed"] += 1
    return counts


# --- results on disk ---------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Seeds to run and finished runs, read from the file of `--json` if it exists.

    Raises:
        InvalidInput: when the number of seeds is not positive, or the file has results of other paths.
    """
    if options.seeds < 1:
        raise invalid("--seeds", "a positive number", options.seeds)
    if options.json and options.json.exists():
        stored = json.loads(options.json.read_text("utf-8"))
        if stored["paths"] != options.paths:
            raise invalid("--json", f"a file of the paths {' '.join(options.paths)}", " ".join(stored["paths"]))
        return dict(stored)
    count, first = options.seeds, options.first
    seeds = [secrets.randbits(32) for _ in range(count)] if first is None else [*range(first, first + count)]
    return {"paths": options.paths, "seeds": seeds, "runs": []}


def write(path: Path | None, text: str) -> None:
    """Write a file atomically; None: do nothing."""
    if path:
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.write_text(text, "utf-8")
        unfinished.replace(path)


def row(run: Mapping[str, Any]) -> str:
    """Markdown row of one run."""
    failures = "<br>".join(name.replace("|", "\\|").replace("\n", " ") for name in run["failures"])
    return f"| {' | '.join([*(str(run[key]) for key in HEADER[:-1]), failures])} |"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the runs."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}", *map(row, runs)]
    return "\n".join(lines) + "\n"


# --- the command -------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.seeds",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=25, metavar="N", help="number of seeds (25)")
    parser.add_argument("--first", type=int, metavar="SEED", help="run SEED, SEED + 1, ... instead of fresh seeds")
    parser.add_argument("--paths", nargs="+", default=["tests"], help="tests to run (tests)")
    parser.add_argument(
        "--drawn", action="store_true", help="only tests that draw examples: no other depends on the seed"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of pytest-xdist (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the results here after each seed, and resume")
    parser.add_argument("--output", type=Path, metavar="FILE", help="store the table here, in Markdown")
    return parser.parse_args(arguments)


def missing_runs(results: Mapping[str, Any], workers: int, drawn: bool = False) -> Iterator[Run]:
    """Run every seed without a result, with a progress bar on standard error."""
    done = {run["seed"] for run in results["runs"]}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("seeds", total=len(results["seeds"]), completed=len(done))
        for seed in results["seeds"]:
            if seed not in done:
                progress.update(task, description=f"seed {seed}")
                yield run_seed(seed, results["paths"], workers, drawn)
                progress.advance(task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds without a result, and print and store the table. Returns the exit code."""
    options = parse(arguments)
    try:
        results = plan(options)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    write(options.json, json.dumps(results, indent=1) + "\n")
    print(table(results["runs"]), end="", flush=True)
    for run in missing_runs(results, options.workers, options.drawn):
        results["runs"].append(run)
        write(options.json, json.dumps(results, indent=1) + "\n")
        write(options.output, table(results["runs"]))
        print(row(run), flush=True)
    return int(any(run["failed"] for run in results["runs"]))


if __name__ == "__main__":
    sys.exit(main())
