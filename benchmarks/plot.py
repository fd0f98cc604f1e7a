"""A picture of one or more reports of `benchmarks.run`.

Example: python -m benchmarks.plot benchmarks/results/cpu-float32.json benchmarks/results/cpu-bfloat16.json --output cpu.png
"""

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw([json.loads(path.read_text()) for path in arguments.reports], arguments.output)


def draw(reports: list[dict[str, Any]], output: Path) -> None:
    """One row of panels a report, one panel a measurement, one bar a participant, in tokens per second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    jobs = list(dict.fromkeys((row["what"], row["size"]) for report in reports for row in report["results"]))
    figure, panels = pyplot.subplots(
        len(reports), len(jobs), figsize=(2.4 * len(jobs), 2.6 * len(reports)), squeeze=False, layout="constrained"
    )
    for line, report in zip(panels, reports, strict=True):
        for panel, job in zip(line, jobs, strict=True):
            rows = [row for row in report["results"] if (row["what"], row["size"]) == job]
            names = [row["participant"] for row in rows]
            bars = panel.bar(names, [row["tokens_per_second"] for row in rows], color=[_colour(name) for name in names])
            panel.bar_label(bars, fmt="%.4g", fontsize=7)
            panel.set_title(f"{job[0]} {job[1]}", fontsize=9)
            panel.tick_params(axis="x", labelrotation=40, labelsize=7)
            panel.tick_params(axis="y", labelsize=7)
            panel.margins(y=0.15)
        line[0].set_ylabel(f"{report['what'].split(', ')[2]}, tokens/s", fontsize=8)
    figure.suptitle(reports[0]["what"].split(", ")[0] + ", " + reports[0]["machine"]["processor"], fontsize=10)
    figure.savefig(output, dpi=130)


def _colour(name: str) -> str:
    return {"numba": "#2a6f97", "numpy": "#89c2d9"}.get(name, "#b0b0b0")


if __name__ == "__main__":
    main()
