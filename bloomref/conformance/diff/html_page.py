"""Report of a difference as one self-contained HTML page: sentences, a bar chart, a map of the positions, a table."""

import math
from collections.abc import Callable
from html import escape

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import code
from bloomref.conformance.diff.compare import Difference
from bloomref.conformance.diff.measure import Comparison, rms_error
from bloomref.conformance.diff.report import sentences
from bloomref.conformance.oracle.budgets import LIMIT
from bloomref.conformance.oracle.intermediates import per_position
from bloomref.conformance.oracle.truth import truth

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 300, 56, 16, 120
CELL = 14
POSITIONS = 600  # a longer input is drawn in groups of positions

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #d9dce1; --paper: #fff; --good: #2f7d4f; --bad: #c2362b; --mark: #b7791f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #9aa1ac; --line: #3a3f47; --paper: #16181c; --good: #58b27c; --bad: #ef6a5e; --mark: #e0a94a } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.05rem; margin: 2.2rem 0 .4rem } p { margin: .3rem 0 } .soft { color: var(--soft) }
.verdict { border-left: 4px solid var(--good); padding: .5rem 0 .5rem 1rem; margin: 1.2rem 0 } .differ { border-color: var(--bad) }
svg { width: 100%; height: auto; display: block } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) } .grid { stroke: var(--line) } .limit { stroke: var(--mark); stroke-dasharray: 5 4 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line) } td.n, th.n { text-align: right }
tr.bad td:nth-child(2) { color: var(--bad); font-weight: 600 } tr.first td:first-child::after { content: " first"; color: var(--bad); font-size: .8em }
code, pre { font: 13px/1.5 ui-monospace, monospace } pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line) }
"""


def page(difference: Difference) -> str:
    """Return the whole HTML document."""
    a, b = (escape(operand.name) for operand in difference.operands)
    verdict, *rest = (escape(line.strip()) for line in sentences(difference))
    body = [
        f"<h1>{a} and {b}</h1><p class=soft>bloomref diff</p>",
        f'<div class="verdict{" differ" if difference.differ else ""}"><p><strong>{verdict}</strong></p>{_paragraphs(rest)}</div>',
        "<h2>Error of each intermediate</h2>",
        f"<p class=soft>Z: the error divided by the rounding error, in the order of computation. Rounding explains what is below the dashed line ({LIMIT:g}).</p>",
        profile(difference),
        f"<h2>Position in the input: {escape(mapped(difference))}</h2>",
        "<p class=soft>Each line is a row of the batch, with its positions from left to right. Darker cells have a larger relative error.</p>",
        position_map(difference),
        "<h2>All intermediates</h2>",
        _table(difference),
        f"<h2>The case</h2><pre>{escape(code(difference.case))}</pre>",
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{a} and {b}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _paragraphs(lines: list[str]) -> str:
    return "".join(f"<p>{line}</p>" for line in lines)


# --- bar chart -------------------------------------------------------------------------------------------------------


def profile(difference: Difference) -> str:
    """Draw a bar for the Z of each intermediate, on a logarithmic scale."""
    rows = difference.comparisons
    finite = [row.z for row in rows if math.isfinite(row.z)]
    decades = math.ceil(math.log10(max([*finite, 10.0 * LIMIT])))
    height = HEIGHT - TOP - BOTTOM

    def y(z: float) -> float:
        fraction = 1.0 if not math.isfinite(z) else (math.log10(max(z, 0.1)) + 1.0) / (decades + 1.0)
        return TOP + height * (1.0 - fraction)

    grid = [
        _line(y(10.0**k), "grid") + _text(LEFT - 6, y(10.0**k) + 4, _power(k), "end") for k in range(-1, decades + 1)
    ]
    width = (WIDTH - LEFT) / max(len(rows), 1)
    bars = [_bar(row, LEFT + i * width, width, y, i, len(rows)) for i, row in enumerate(rows)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img>{"".join(grid)}{"".join(bars)}{_line(y(LIMIT), "limit")}</svg>'
    )


def _bar(row: Comparison, x: float, width: float, y: Callable[[float], float], index: int, count: int) -> str:
    top, floor = y(row.z), HEIGHT - BOTTOM
    colour = "var(--bad)" if row.differs else "var(--good)"
    title = f"<title>{escape(row.name)}: {_shown(row.z)}</title>"
    rect = (
        f'<rect x="{x + 1:.1f}" y="{top:.1f}" width="{max(width - 2, 0.6):.1f}" height="{max(floor - top, 1):.1f}" '
        f'fill="{colour}">{title}</rect>'
    )
    if count > 45 and index % math.ceil(count / 45):
        return rect
    at = f"{x + width / 2 + 3:.1f} {floor + 8}"
    return rect + f'<text transform="translate({at}) rotate(60)">{escape(row.name.removeprefix("layers."))}</text>'


def _line(y: float, style: str) -> str:
    return f'<line class="{style}" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _power(k: int) -> str:
    return f"{10**k}" if 0 <= k <= 3 else ("0.1" if k == -1 else f"1e{k}")


# --- position map ----------------------------------------------------------------------------------------------------


def mapped(difference: Difference) -> str:
    """Name of the intermediate whose positions are drawn: the first that differs, or else the last."""
    return difference.first.name if difference.first else difference.comparisons[-1].name


def position_map(difference: Difference) -> str:
    """Draw the relative error at each position, logarithmic from 1e-8 to 1."""
    name, case = mapped(difference), difference.case
    a, b = (operand.values[name].astype(np.float64) for operand in difference.operands)
    with np.errstate(all="ignore"):
        error = rms_error(case, name, a - b)
        relative = error / np.maximum(per_position(name, truth(case).values[name], case.is_real), 1e-300)
    group = -(-case.time // POSITIONS)
    relative = np.maximum.reduceat(relative, np.arange(0, case.time, group), axis=1)
    width = (WIDTH - LEFT) / max(relative.shape[1], 1)
    cells = [
        _cell(case, row, cell * group, LEFT + cell * width, width, float(value))
        for row, values in enumerate(relative)
        for cell, value in enumerate(values)
    ]
    labels = [_text(LEFT - 6, row * CELL + 11, f"row {row}", "end") for row in range(len(relative))]
    height = len(relative) * CELL + 2
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img>{"".join(labels)}{"".join(cells)}</svg>'


def _cell(case: Case, row: int, position: int, x: float, width: float, relative: float) -> str:
    """Draw one cell; `x` and `width` are in units of the picture."""
    rect = f'<rect x="{x:.1f}" y="{row * CELL + 1}" width="{max(width - 0.5, 0.5):.1f}" height="{CELL - 2}" '
    if not case.is_real[row, position]:
        return rect + 'fill="var(--line)" fill-opacity="0.5"><title>padding</title></rect>'
    strength = 1.0
    if math.isfinite(relative):
        strength = min(1.0, max(0.0, (math.log10(max(relative, 1e-8)) + 8.0) / 8.0))
    title = f"<title>row {row}, position {position}: {relative:.2g}</title>"
    return rect + f'fill="var(--bad)" fill-opacity="{0.06 + 0.94 * strength:.2f}">{title}</rect>'


# --- table ------------------------------------------------------------------------------------------------------------


def _table(difference: Difference) -> str:
    head = "<tr><th>intermediate</th><th class=n>Z</th><th class=n>relative</th><th>largest</th></tr>"
    rows = "".join(_row(row, row is difference.first) for row in difference.comparisons)
    return f"<table>{head}{rows}</table>"


def _row(row: Comparison, is_first: bool) -> str:
    batch_row, position = row.where or (0, 0)
    return (
        f'<tr class="{"bad" if row.differs else ""} {"first" if is_first else ""}"><td><code>{escape(row.name)}</code></td>'
        f"<td class=n>{_shown(row.z)}</td><td class=n>{row.relative:.2e}</td>"
        f"<td>row {batch_row}, position {position}</td></tr>"
    )


def _shown(z: float) -> str:
    return f"{z:.3g}" if math.isfinite(z) else "not finite"
