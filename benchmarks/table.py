"""A report of `benchmarks.run` as a table: one line a measurement, one column a participant, the best one starred."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Line:
    """One measurement: the value of each participant, a note to it, and the hardware limit for each value."""

    title: str
    values: dict[str, float]
    best: Any = min
    notes: dict[str, str] = field(default_factory=dict)
    floors: list[float] = field(default_factory=list)
    form: Callable[[float], str] = lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}"

    def cell(self, name: str) -> str:
        if name not in self.values:
            return ""
        text = self.form(self.values[name])
        best = self.values[name] == self.best(self.values.values()) and len(self.values) > 1
        return (f"[bold]* {text}[/bold]" if best else text) + self.notes.get(name, "")


def render(report: dict[str, Any], console: Console) -> None:
    """Print the report."""
    names = list(report["threads"])
    table = Table(title=report["what"], title_justify="left", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines(report):
        table.add_row(line.title, *(line.cell(name) for name in names))
    console.print(table)
    for name, floor in report["floors"].items():
        console.print(f"{name}: median {floor['median']}, best {floor['best']}", highlight=False)
    console.print(
        "Percentages: share of the hardware limit, of matrix products (prefill) or of reading memory (decode).",
        highlight=False,
    )
    for name, reason in report["absent"].items():
        console.print(f"absent: {name}: {reason}", highlight=False, markup=False)


def lines(report: dict[str, Any]) -> list[Line]:
    """All lines of the table, in order."""
    starts, ends = report["starts"].items(), report["memory"].items()
    return [
        *_rates(report["results"]),
        Line("process start to first token, s", {n: median(s["first_token_seconds"]) for n, s in starts}),
        Line("of it loading, s", {n: median(s["load_seconds"]) for n, s in starts}),
        Line("peak memory loaded, MB", _peaks((n, s["loaded"]) for n, s in starts), form="{:.0f}".format),
        Line("peak memory at the first token, MB", _peaks((n, s["end"]) for n, s in starts), form="{:.0f}".format),
        Line("peak memory of the whole run, MB", _peaks((n, m["end"]) for n, m in ends), form="{:.0f}".format),
        Line("error of the logits, rms", report["logit_error_rms"], form="{:.1e}".format),
    ]


def title(row: dict[str, Any]) -> str:
    """Title of a result."""
    if row["what"] == "prefill":
        return f"prefill {row['context']}, tokens/s"
    rows = "row" if row["rows"] == 1 else "rows"
    return f"decode {row['rows']} {rows} after {row['context']}, tokens/s"


def _rates(results: list[dict[str, Any]]) -> list[Line]:
    by_title: dict[str, Line] = {}
    for row in results:
        share = row.get("percent_of_read_floor", row.get("percent_of_product_floor"))
        line = by_title.setdefault(title(row), Line(title(row), {}, max))
        line.floors.extend([row["tokens_per_second"] * 100 / share] if share else [])
        line.values[row["participant"]] = row["tokens_per_second"]
        line.notes[row["participant"]] = f" {share:3.0f}%" if share else "     "
    return list(by_title.values())


def _peaks(states: Any) -> dict[str, float]:
    return {name: state["peak_mb"] for name, state in states if "peak_mb" in state}
