"""A difference as one HTML page that needs nothing else: words, a profile of the layers, a map of the positions, all numbers."""

import math
from html import escape

import numpy as np

from bloomref.conformance.checks.outcome import code
from bloomref.conformance.diff.compare import Difference, Step, distance
from bloomref.conformance.diff.report import sentences
from bloomref.conformance.oracle.budgets import LIMIT
from bloomref.conformance.oracle.intermediates import per_position
from bloomref.conformance.oracle.truth import truth

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 300, 56, 16, 120
CELL = 14
POSITIONS = 600  # wider maps are drawn in groups of positions

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


def page(found: Difference) -> str:
    """The whole document."""
    a, b = (escape(side.name) for side in found.sides)
    verdict, *rest = (escape(line.strip()) for line in sentences(found))
    body = [
        f"<h1>{a} and {b}</h1><p class=soft>bloomref diff</p>",
        f'<div class="verdict{" differ" if found.differ else ""}"><p><strong>{verdict}</strong></p>{_paragraphs(rest)}</div>',
        "<h2>Error of each intermediate</h2>",
        f"<p class=soft>In units of what rounding explains, in the order of computation; beyond the dashed line ({LIMIT:g}) it does not.</p>",
        profile(found),
        f"<h2>Where in the input: {escape(mapped(found))}</h2>",
        "<p class=soft>One row of the batch below the other, positions from left to right; the darker, the larger the error against its size.</p>",
        position_map(found),
        "<h2>All numbers</h2>",
        _table(found),
        f"<h2>The case</h2><pre>{escape(code(found.case))}</pre>",
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{a} and {b}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _paragraphs(lines: list[str]) -> str:
    return "".join(f"<p>{line}</p>" for line in lines)


# --- the profile -----------------------------------------------------------------------------------------------------


def profile(found: Difference) -> str:
    """Bars on a logarithmic scale."""
    finite = [step.z for step in found.steps if math.isfinite(step.z)]
    decades = math.ceil(math.log10(max([*finite, 10.0 * LIMIT])))
    plot = HEIGHT - TOP - BOTTOM

    def y(z: float) -> float:
        share = 1.0 if not math.isfinite(z) else (math.log10(max(z, 0.1)) + 1.0) / (decades + 1.0)
        return TOP + plot * (1.0 - share)

    grid = [
        _line(y(10.0**k), "grid") + _text(LEFT - 6, y(10.0**k) + 4, _power(k), "end") for k in range(-1, decades + 1)
    ]
    step_width = (WIDTH - LEFT) / max(len(found.steps), 1)
    bars = [_bar(step, LEFT + i * step_width, step_width, y, i, len(found.steps)) for i, step in enumerate(found.steps)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img>{"".join(grid)}{"".join(bars)}{_line(y(LIMIT), "limit")}</svg>'
    )


def _bar(step: Step, x: float, width: float, y: object, index: int, count: int) -> str:
    top, floor = y(step.z), HEIGHT - BOTTOM  # type: ignore[operator]
    colour = "var(--bad)" if step.differs else "var(--good)"
    title = f"<title>{escape(step.name)}: {_shown(step.z)}</title>"
    rect = f'<rect x="{x + 1:.1f}" y="{top:.1f}" width="{max(width - 2, 0.6):.1f}" height="{max(floor - top, 1):.1f}" fill="{colour}">{title}</rect>'
    if count > 45 and index % math.ceil(count / 45):
        return rect
    at = f"{x + width / 2 + 3:.1f} {floor + 8}"
    return rect + f'<text transform="translate({at}) rotate(60)">{escape(step.name.removeprefix("layers."))}</text>'


def _line(y: float, style: str) -> str:
    return f'<line class="{style}" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _power(k: int) -> str:
    return f"{10**k}" if 0 <= k <= 3 else ("0.1" if k == -1 else f"1e{k}")


# --- the map ---------------------------------------------------------------------------------------------------------


def mapped(found: Difference) -> str:
    """The intermediate whose positions are shown: the first that differs, or the last there is."""
    return found.first.name if found.first else found.steps[-1].name


def position_map(found: Difference) -> str:
    """The relative error of each position, logarithmic from 1e-8 to 1."""
    name, case = mapped(found), found.case
    a, b = (side.values[name].astype(np.float64) for side in found.sides)
    with np.errstate(all="ignore"):
        far = distance(case, name, a - b)
        share = far / np.maximum(per_position(name, truth(case).values[name], case.is_real), 1e-300)
    group = -(-case.time // POSITIONS)
    share = np.maximum.reduceat(share, np.arange(0, case.time, group), axis=1)
    width = (WIDTH - LEFT) / max(share.shape[1], 1)
    cells = [
        _cell(
            LEFT + column * width,
            row * CELL,
            width,
            float(value),
            bool(case.is_real[row, column * group]),
            row,
            column * group,
        )
        for row, values in enumerate(share)
        for column, value in enumerate(values)
    ]
    labels = [_text(LEFT - 6, row * CELL + 11, f"row {row}", "end") for row in range(len(share))]
    return f'<svg viewBox="0 0 {WIDTH} {len(share) * CELL + 2}" role=img>{"".join(labels)}{"".join(cells)}</svg>'


def _cell(x: float, y: float, width: float, share: float, real: bool, row: int, position: int) -> str:
    strength = 1.0 if not math.isfinite(share) else min(1.0, max(0.0, (math.log10(max(share, 1e-8)) + 8.0) / 8.0))
    fill = (
        f'fill="var(--bad)" fill-opacity="{0.06 + 0.94 * strength:.2f}"'
        if real
        else 'fill="var(--line)" fill-opacity="0.5"'
    )
    title = f"<title>row {row}, position {position}: {share:.2g}</title>" if real else "<title>padding</title>"
    return (
        f'<rect x="{x:.1f}" y="{y + 1}" width="{max(width - 0.5, 0.5):.1f}" height="{CELL - 2}" {fill}>{title}</rect>'
    )


# --- the numbers -----------------------------------------------------------------------------------------------------


def _table(found: Difference) -> str:
    rows = [
        f'<tr class="{"bad" if step.differs else ""} {"first" if step is found.first else ""}"><td><code>{escape(step.name)}</code></td>'
        f"<td class=n>{_shown(step.z)}</td><td class=n>{step.relative:.2e}</td><td>row {step.where[0]}, position {step.where[1]}</td></tr>"
        for step in found.steps
    ]
    head = "<tr><th>intermediate</th><th class=n>Z</th><th class=n>relative</th><th>worst</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _shown(z: float) -> str:
    return f"{z:.3g}" if math.isfinite(z) else "not finite"
