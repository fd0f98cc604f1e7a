"""Report of a difference: sentences, a table on the terminal, and JSON."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bloomref.conformance.diff.compare import Difference
from bloomref.conformance.diff.explain import Explanation
from bloomref.conformance.diff.measure import Comparison
from bloomref.conformance.oracle.budgets import LIMIT
from bloomref.conformance.oracle.matched_filter import Amplitude
from bloomref.errors import visible

BAR = 24
"""Width of a bar, in characters."""
HEADING = f"bar of Z: beyond the | (Z = {LIMIT:g}) it differs"
"""Heading of the bars."""
BLOCKS = (".attention_block", ".mlp_block")
MANY = 40
"""Most intermediates that are all shown; of more, only outputs of blocks and those near the first difference."""
AROUND = 4
"""Intermediates shown on either side of the first difference."""


def sentences(difference: Difference) -> list[str]:
    """Return the result in sentences; the first one is the verdict."""
    a, b = (operand.name for operand in difference.operands)
    first = difference.first
    if first is None:
        worst = max(difference.comparisons, key=lambda comparison: comparison.z)
        verdict = f"{a} and {b} agree: the largest error is at {worst.name}, {_times(worst.z)} (limit {LIMIT:g})."
        return [verdict, *(_noise(name, amplitude) for name, amplitude in difference.below_noise)]
    verdict = (
        f"{a} and {b} differ first at {first.name}: {_times(first.z)} (limit {LIMIT:g}), relative error "
        f"{first.relative:.2g}{_where(first)}."
    )
    if not difference.explanations:
        return [verdict, "No known mistake explains it."]
    matches = [explanation for explanation in difference.explanations if explanation.matches]
    if not matches:
        return [verdict, *map(_partly, difference.explanations[:2])]
    same = [explanation for explanation in matches[1:4] if explanation.operand == matches[0].operand]
    return [verdict, _matches(matches[0]), *map(_same, same)]


def _where(comparison: Comparison) -> str:
    if comparison.where is None:
        return ""
    return f", largest in row {comparison.where[0]} at position {comparison.where[1]}"


def _matches(explanation: Explanation) -> str:
    mistake = explanation.mistake
    return (
        f"{explanation.operand} matches {mistake.name} ({', '.join(mistake.clauses)}): it {mistake.sentence}. "
        f"Compared with a model that does the same, its largest error is {_times(explanation.z)}."
    )


def _same(explanation: Explanation) -> str:
    return f"  On this input, {explanation.mistake.name} has the same effect: it {explanation.mistake.sentence}."


def _partly(explanation: Explanation) -> str:
    return (
        f"{explanation.operand} is close to {explanation.mistake.name}: it {explanation.mistake.sentence}. "
        f"That explains {explanation.share:.1%} of the difference; the rest is {_times(explanation.z)}."
    )


def _noise(name: str, amplitude: Amplitude) -> str:
    return (
        f"Every number of {name} is within its budget, but together they point to {amplitude.name}: "
        f"amplitude {amplitude.value:.3f} +- {amplitude.standard_error:.2g}."
    )


def _times(z: float) -> str:
    return f"{z:.3g} times the rounding error" if math.isfinite(z) else "a number that is not finite"


# --- terminal --------------------------------------------------------------------------------------------------------


def show(difference: Difference, console: Console, every: bool = False) -> None:
    """Print the sentences and the table; with `every`, all rows of it."""
    verdict, *rest = sentences(difference)
    console.print(Text(visible(verdict), "bold red" if difference.differ else "bold green"))
    for line in rest:
        console.print(Text(visible(line), "yellow" if " matches " in line else ""))
    rows = difference.comparisons if every else shown(difference)
    console.print(Group(Text(), _table(difference, rows)))
    folded = len(difference.comparisons) - len(rows)
    if folded:
        console.print(f"{folded} of {len(difference.comparisons)} rows are left out; --all shows them.")


def _table(difference: Difference, rows: Sequence[Comparison]) -> RenderableType:
    table = Table("intermediate", "Z", "relative", HEADING, box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    top = max((row.z for row in difference.comparisons if math.isfinite(row.z)), default=1.0)
    for row in rows:
        mark = " <- first" if row is difference.first else ""
        table.add_row(
            Text(visible(row.name, 120)), _z(row), f"{row.relative:.1e}", Text(bar(row.z, top) + mark, _colour(row))
        )
    return table


def shown(difference: Difference) -> list[Comparison]:
    """Return the rows of the table:
    all, or if there are many, the blocks and the surroundings of the first difference.
    """
    rows = difference.comparisons
    if len(rows) <= MANY:
        return rows
    first = rows.index(difference.first) if difference.first else None
    return [
        row
        for i, row in enumerate(rows)
        if not row.name.startswith("layers.")
        or row.name.endswith(BLOCKS)
        or (first is not None and abs(i - first) <= AROUND)
    ]


def bar(z: float, top: float) -> str:
    """Draw a logarithmic bar from Z = 0.1 to `top`, with the limit marked."""
    scale = BAR / math.log10(max(top, 10.0 * LIMIT) / 0.1)
    length = BAR if not math.isfinite(z) else round(scale * math.log10(max(z, 0.1) / 0.1))
    limit = round(scale * math.log10(LIMIT / 0.1))
    marks = ["#" if i < length else " " for i in range(BAR)]
    marks[limit] = "|" if limit >= length else "#"
    return "".join(marks)


def _z(row: Comparison) -> str:
    return f"{row.z:.3g}" if row.judged else "(lost in rounding)"


def _colour(row: Comparison) -> str:
    return "red" if row.differs else "green"


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_dict(difference: Difference) -> dict[str, Any]:
    """Return the difference as plain values; a Z that is not finite is None."""
    first = difference.first
    return {
        "sides": [operand.name for operand in difference.operands],
        "differ": difference.differ,
        "first": first and first.name,
        "sentences": sentences(difference),
        "intermediates": [_row(comparison) for comparison in difference.comparisons],
        "explanations": [
            {
                "side": explanation.operand,
                "mistake": explanation.mistake.name,
                "sentence": explanation.mistake.sentence,
                "clauses": list(explanation.mistake.clauses),
                "matches": explanation.matches,
                "z": _number(explanation.z),
                "share": explanation.share,
            }
            for explanation in difference.explanations
        ],
        "below_noise": [
            {"side": name, "mistake": a.name, "amplitude": a.value, "standard_error": a.standard_error}
            for name, a in difference.below_noise
        ],
    }


def _row(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.name,
        "z": _number(comparison.z),
        "relative": _number(comparison.relative),
        "judged": comparison.judged,
        "worst": comparison.where and dict(zip(("row", "position"), comparison.where, strict=True)),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
