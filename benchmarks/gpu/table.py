"""Tables of a report of `python -m benchmarks.gpu --measure`, for the terminal or in Markdown.

Example: python -m benchmarks.gpu.table benchmarks/results/gpu.json --rows 1
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Rows = list[list[str]]
"""Cells of a table, header first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON file that --output wrote")
    parser.add_argument("--rows", type=int, default=1, help="batch size of the step whose kernels are listed")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text("utf-8"))
    print("\n\n".join(sections(report, arguments.rows)))


def sections(report: dict[str, Any], rows: int) -> Iterator[str]:
    """Yield Markdown tables: aims, steps, and, for each preset, the time of each kernel of a step of `rows` rows."""
    yield markdown(aims(report["aims"]))
    yield markdown(steps(report["measured"]))
    for entry in report["measured"]:
        if rows_of_kernels := kernels(entry, rows):
            row, context = "row" if rows == 1 else "rows", report["settings"]["context"]
            yield f"{entry['preset']}, {rows} {row}, context {context}:\n\n{markdown(rows_of_kernels)}"


def show(report: dict[str, Any], console: Console) -> None:
    for cells in (steps(report["measured"]), aims(report["aims"])):
        table = Table(*cells[0], box=None, pad_edge=False)
        for row in cells[1:]:
            table.add_row(*row)
        console.print(table)
    for line in absent(report["measured"]):
        console.print(f"absent: {line}")


def markdown(cells: Rows) -> str:
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- contents ----------------------------------------------------------------------------------------------------


def steps(measured: list[dict[str, Any]]) -> Rows:
    cells = [["preset", "participant", "rows", "ms a step", "tokens/s", "of the floor"]]
    for entry in measured:
        for name, answer in entry["participants"].items():
            for rows, seconds in answer.get("step_seconds", {}).items():
                fraction = entry["fractions"].get(name, {}).get(rows)
                shown = "" if fraction is None else f"{fraction:.0%}"
                cells.append([entry["preset"], name, rows, f"{seconds * 1e3:.3f}", f"{int(rows) / seconds:.0f}", shown])
    return cells


def aims(judged: list[dict[str, Any]]) -> Rows:
    words = {True: "yes", False: "no", None: "not measured"}
    cells = [["aim", "preset", "target", "measured", "holds"]]
    for aim in judged:
        measured = "" if aim["measured"] is None else f"{aim['measured']:.3g}"
        target = f"{aim['bound']} {aim['wanted']:g}"
        cells.append([aim["aim"], aim["preset"], target, measured, words[aim["holds"]]])
    return cells


def kernels(entry: dict[str, Any], rows: int) -> Rows:
    """Return the kernels of a step with their bandwidth, relative to the copy, and their share of the time.

    It is empty if they were not timed.

    A star marks kernels with so few bytes that they may have come from a cache.
    """
    timed = entry["participants"].get("kernels", {}).get("kernels", {}).get(str(rows), [])
    if not timed:
        return []
    rate = entry["participants"].get("copy", {}).get("bytes_per_second")
    total = sum(one["times"] * one["seconds"] for one in timed)
    cells = [["kernel", "times", "µs", "MB", "of the copy", "share of time"]]
    for one in timed:
        speed = one["bytes"] / one["seconds"]
        of_copy = "" if rate is None else f"{speed / rate:.0%}{'*' if one['in_cache'] else ''}"
        share = f"{one['times'] * one['seconds'] / total:.1%}"
        cells.append(
            [
                one["kernel"],
                str(one["times"]),
                f"{one['seconds'] * 1e6:.2f}",
                f"{one['bytes'] / 1e6:.2f}",
                of_copy,
                share,
            ]
        )
    together = entry["participants"]["kernels"]["kernels_together"][str(rows)]
    cells.append(["all, one by one", "", f"{total * 1e6:.0f}", "", "", "100.0%"])
    cells.append(["all, as one graph", "", f"{together * 1e6:.0f}", "", "", f"{together / total:.1%}"])
    return cells


def absent(measured: list[dict[str, Any]]) -> list[str]:
    return [
        f"{entry['preset']}, {name}: {answer['absent']}"
        for entry in measured
        for name, answer in entry["participants"].items()
        if "absent" in answer
    ]


if __name__ == "__main__":
    main()
