"""Damage files and arguments at random, and count what bloomref answers."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.faults import limited_processes as workers
from tools.faults.fault_table import Results, write_page
from tools.faults.surfaces import SURFACES
from tools.faults.trials import Outcome, attempt

EXAMPLES = """examples:
  python -m tools.faults                                      200 inputs a surface
  python -m tools.faults --only config --inputs 2500 --jobs 2
  python -m tools.faults --only config --repeat 17            one input again, in this process
  python -m tools.faults --page                               store docs/proof/faults.md and faults.json
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.faults",
        description=__doc__,
        epilog=f"surfaces: {', '.join(SURFACES)}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=200, metavar="N", help="inputs of each surface (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (0)")
    parser.add_argument("--only", nargs="+", choices=SURFACES, default=[*SURFACES], metavar="SURFACE", help="surfaces")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="worker processes (1)")
    parser.add_argument("--json", action="store_true", help="print the numbers and each fault as JSON")
    parser.add_argument("--page", action="store_true", help="store the table and the numbers in docs/proof")
    parser.add_argument(
        "--repeat", type=int, metavar="INDEX", help="ask one input of one surface and print its outcome"
    )
    options = parser.parse_args(arguments)
    if options.inputs < 1 or options.jobs < 1 or options.seed < 0:
        parser.error("--inputs and --jobs are positive, --seed is not negative")
    if options.page and len(options.only) < len(SURFACES):
        parser.error("--page stores every surface: leave --only out")
    if options.repeat is not None and (len(options.only) != 1 or options.repeat < 0):
        parser.error("--repeat takes an index, and one surface with --only")
    return options


def repeat(name: str, seed: int, index: int) -> Outcome:
    """Ask one input in this process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        base = Path(place, "undamaged")
        SURFACES[name].make(base)
        return attempt(SURFACES[name], base, Path(place, f"input-{index}"), seed, index)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and store the table. Returns 1 if there is a fault."""
    options = parse(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if options.repeat is not None:
        outcome = repeat(options.only[0], options.seed, options.repeat)
        print(outcome.kind, outcome.note)
        return int(outcome.kind != "good")
    names = [name for name in options.only if not SURFACES[name].needs or find_spec(SURFACES[name].needs)]
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("faults", total=len(names) * options.inputs)

        def count(job: workers.Job, outcome: Outcome) -> None:
            results.add(*job, outcome)
            progress.update(task, description=job[0], advance=1)

        jobs = [(name, index) for name in names for index in range(options.inputs)]
        workers.run(jobs, options.seed, options.jobs, count)
    if options.page:
        write_page(results, options.inputs, options.seed, workers.SECONDS, workers.MEMORY)
    print(json.dumps(results.to_dict(options.seed), indent=1) if options.json else results.table(), end="")
    return int(bool(results.faults))


if __name__ == "__main__":
    sys.exit(main())
