"""Plot of one or more reports of `benchmarks.run`: a row of panels for each report, a colour for each participant.

Example:

    python -m benchmarks.plot benchmarks/results/cpu-float32.json benchmarks/results/cpu-bfloat16.json \\
        --output benchmarks/results/cpu.png
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.table import Line, lines

COLOURS = {
    "numba": "#0b5d8a",
    "numpy": "#7fb7d6",
    "transformers": "#c9a227",
    "llama.cpp": "#9a9a9a",
    "ctranslate2": "#7a9e7e",
    "keras": "#d98c7a",
    "openvino": "#8d7fb0",
}
FLOOR = "#b03030"
PANELS = {
    "prefill, tokens/s": ("prefill ", 2.6),
    "decoding one row, tokens/s": ("decode 1 row ", 2.6),
    "decoding 4 and 16 rows, tokens/s": ("rows after ", 2.2),
    "start to first token, s": ("process start", 1.2),
    "peak memory, GB": ("peak memory of the whole run", 1.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw([json.loads(path.read_text()) for path in arguments.reports], arguments.output)


def draw(reports: list[dict[str, Any]], output: Path) -> None:
    """Write the plot to `output`; every bar is a median."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in COLOURS if any(name in report["threads"] for report in reports)]
    figure, panels = pyplot.subplots(
        len(reports),
        len(PANELS),
        figsize=(17, 0.8 + 3.1 * len(reports)),
        squeeze=False,
        layout="constrained",
        width_ratios=[width for _, width in PANELS.values()],
    )
    for row, report in zip(panels, reports, strict=True):
        for panel, (heading, (part, _)) in zip(row, PANELS.items(), strict=True):
            _panel(panel, heading, [line for line in lines(report) if part in line.title], names)
        row[0].set_ylabel(_dtype(report), fontsize=11, fontweight="bold")
    _frame(figure, reports[0], names)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _panel(panel: Any, heading: str, measured: list[Line], names: list[str]) -> None:
    """Groups of bars, one for each line of the table."""
    width = 0.86 / len(names)
    scale = 1000 if "GB" in heading else 1
    for group, line in enumerate(measured):
        if line.floors:
            panel.hlines(median(line.floors), group - 0.46, group + 0.46, color=FLOOR, linewidth=1.2, linestyle="--")
        for place, name in enumerate(names):
            if name in line.values:
                x, y = group + (place - (len(names) - 1) / 2) * width, line.values[name] / scale
                panel.bar(x, y, width * 0.92, color=COLOURS[name])
                panel.text(
                    x,
                    y,
                    f" {y:.0f}" if y >= 100 else f" {y:.3g}",
                    rotation=90,
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color="#444444",
                )
    panel.set_title(heading, fontsize=10, loc="left")
    panel.set_xticks(range(len(measured)), [_label(line) for line in measured], fontsize=8)
    panel.tick_params(axis="y", labelsize=8)
    panel.tick_params(axis="x", length=0)
    panel.margins(y=0.22)
    panel.grid(axis="y", color="#eeeeee")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _label(line: Line) -> str:
    """Label of a group of bars within its panel."""
    if not line.title.endswith("tokens/s"):
        return ""
    words = line.title.removesuffix(", tokens/s").split()
    if words[0] == "prefill":
        return f"{words[1]} tokens"
    return f"after {words[-1]}" if words[1] == "1" else f"{words[1]} rows"


def _frame(figure: Any, report: dict[str, Any], names: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=COLOURS[name], label=name) for name in names]
    handles.append(
        Line2D(
            [],
            [],
            color=FLOOR,
            linestyle="--",
            label="hardware limit: matrix products (prefill), reading memory (decode)",
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    what = report["what"].replace(f", {_dtype(report)}", "")
    figure.suptitle(f"{what}, {report['machine']['processor']}", fontsize=12, x=0.01, ha="left")


def _dtype(report: dict[str, Any]) -> str:
    return "bfloat16" if "bfloat16" in report["what"] else "float32"


if __name__ == "__main__":
    main()
