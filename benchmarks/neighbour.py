"""Tokens per second of `generate` alone, and beside one busy process a core, which this benchmark starts and ends.

Two models: the embedded preset, and one of the width of bloom-560m with few layers, random weights and fewer tokens in
its vocabulary. Each backend runs in a process of its own. In every round, each model runs alone, then beside the busy
processes. Figures are medians of the rounds.

Example: python -m benchmarks.neighbour --json
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.children import Child
from benchmarks.figures import short
from benchmarks.floors import cores
from benchmarks.machine import command_line, describe_machine
from benchmarks.neighbour_child import MODELS

GOAL = 40
"""Percent of its rate alone that a model keeps beside the busy processes."""
Rates = dict[str, dict[str, list[float]]]
"""Model -> "alone" and "beside" -> tokens per second, one of each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["numpy", "numba"], help="backends to measure")
    parser.add_argument("--rounds", type=int, default=3, help="runs alone and beside the busy processes, in turns")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    report = measure(arguments.backends, arguments.rounds)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    Console().print(table(report))


def measure(backends: list[str], rounds: int) -> dict[str, Any]:
    """Start a process for each backend, time its models, and return the report."""
    machine = describe_machine()  # with the load before the run
    results = []
    for backend in backends:
        child = Child("benchmarks.neighbour_child", backend)
        try:
            results += figures(backend, _rates(child, rounds))
        finally:
            child.close()
    return {"command": command_line(), "machine": machine, "neighbours": cores(), "results": results}


def _rates(child: Child, rounds: int) -> Rates:
    rates: Rates = {model: {"alone": [], "beside": []} for model in MODELS}
    for _ in range(rounds):
        for model in MODELS:
            rates[model]["alone"].append(child.ask(model=model)["tokens_per_second"])
        with busy(cores()):
            for model in MODELS:
                rates[model]["beside"].append(child.ask(model=model)["tokens_per_second"])
    return rates


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Context manager: so many processes that compute without end; they are ended with the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def figures(backend: str, rates: Rates) -> list[dict[str, Any]]:
    """A row of the report for each model."""
    rows = []
    for model, samples in rates.items():
        alone, beside = (median(samples[name]) for name in ("alone", "beside"))
        rows.append(
            {
                "backend": backend,
                "model": model,
                "alone": short(alone),
                "beside": short(beside),
                "percent": short(100 * beside / alone),
                "reaches_goal": 100 * beside >= GOAL * alone,
                "samples": {name: [short(rate) for rate in values] for name, values in samples.items()},
            }
        )
    return rows


def table(report: dict[str, Any]) -> Table:
    title = f"tokens/s alone, and beside {report['neighbours']} busy processes; load before: "
    shown = Table("backend", "model", "alone", "beside", "kept", title=title + str(report["machine"]["load_average"]))
    for row in report["results"]:
        rates = f"{row['alone']:.1f}", f"{row['beside']:.1f}"
        mark = "" if row["reaches_goal"] else f" (goal {GOAL} %)"
        shown.add_row(row["backend"], row["model"], *rates, f"{row['percent']:.0f} %{mark}")
    return shown


if __name__ == "__main__":
    main()
