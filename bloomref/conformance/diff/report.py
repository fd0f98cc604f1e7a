"""A difference on the terminal, and as JSON."""

import math
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bloomref.conformance.diff.compare import Difference, Explanation, Step
from bloomref.conformance.oracle.budgets import LIMIT
from bloomref.conformance.oracle.matched_filter import Amplitude

BAR = 24
BLOCKS = (".attention_block", ".mlp_block")
MANY = 40
"""Beyond so many intermediates only the results of blocks are shown, and what surrounds the first difference."""
AROUND = 4


def sentences(found: Difference) -> list[str]:
    """What was found, in words; the first one is the verdict."""
    a, b = (side.name for side in found.sides)
    first = found.first
    if first is None:
        worst = max(found.steps, key=lambda step: step.z)
        text = [
            f"{a} and {b} agree: the worst intermediate, {worst.name}, is {worst.z:.2g} times what rounding explains (limit {LIMIT:g})."
        ]
        return text + [_noise(name, amplitude) for name, amplitude in found.below_noise]
    text = [
        f"{a} and {b} part at {first.name}: {_times(first.z)} what rounding explains (limit {LIMIT:g}), "
        f"{first.relative:.2g} of its size, worst in row {first.where[0]} at position {first.where[1]}."
    ]
    matches = [e for e in found.explanations if e.matches]
    if not found.explanations:
        text.append("No known mistake explains it.")
    text += [_matches(e) for e in matches[:1]]
    text += [
        f"  here the same as: {e.mistake.sentence} ({e.mistake.name})"
        for e in matches[1:4]
        if e.side == matches[0].side
    ]
    text += [_partly(e) for e in found.explanations[:2] if not matches]
    return text


def _matches(found: Explanation) -> str:
    clauses = ", ".join(found.mistake.clauses)
    return (
        f"{found.side} matches: {found.mistake.sentence} ({found.mistake.name}; {clauses}). "
        f"Against a model that does that it is {_times(found.z)} what rounding explains."
    )


def _partly(found: Explanation) -> str:
    return (
        f"{found.side} comes close to: {found.mistake.sentence} ({found.mistake.name}). "
        f"It explains {found.share:.1%} of the difference; what is left is {_times(found.z)} what rounding explains."
    )


def _noise(name: str, found: Amplitude) -> str:
    return f"Below the noise of single numbers, {name} looks like {found.name}: amplitude {found.value:.3f} +- {found.standard_error:.2g}."


def _times(z: float) -> str:
    return "not finite against" if not math.isfinite(z) else f"{z:.3g} times"


# --- terminal --------------------------------------------------------------------------------------------------------


def show(found: Difference, console: Console) -> None:
    verdict, *rest = sentences(found)
    style = "bold red" if found.differ else "bold green"
    console.print(Text(verdict, style))
    for line in rest:
        console.print(Text(line, "yellow" if "matches" in line else ""))
    console.print(Group(Text(), _table(found)))


def _table(found: Difference) -> RenderableType:
    table = Table(
        "intermediate",
        "Z",
        "relative",
        f"error in budgets, each mark a factor (| is {LIMIT:g})",
        box=None,
        pad_edge=False,
    )
    table.columns[1].justify = table.columns[2].justify = "right"
    top = max((step.z for step in found.steps if math.isfinite(step.z)), default=1.0)
    for step in shown(found):
        mark = " <- first" if step is found.first else ""
        table.add_row(step.name, _z(step), f"{step.relative:.1e}", Text(bar(step.z, top) + mark, _colour(step)))
    return table


def shown(found: Difference) -> list[Step]:
    """All of them, or of many the results of blocks and those around the first difference."""
    if len(found.steps) <= MANY:
        return found.steps
    at = found.steps.index(found.first) if found.first else 0
    return [
        step
        for i, step in enumerate(found.steps)
        if not step.name.startswith("layers.") or step.name.endswith(BLOCKS) or (found.first and abs(i - at) <= AROUND)
    ]


def bar(z: float, top: float) -> str:
    """Logarithmic, from a tenth of the budget to the largest error; the limit is marked."""
    scale = BAR / math.log10(max(top, 10.0 * LIMIT) / 0.1)
    length = BAR if not math.isfinite(z) else round(scale * math.log10(max(z, 0.1) / 0.1))
    limit = round(scale * math.log10(LIMIT / 0.1))
    marks = ["#" if i < length else " " for i in range(BAR)]
    marks[limit] = "|" if limit >= length else "#"
    return "".join(marks)


def _z(step: Step) -> str:
    return f"{step.z:.3g}" if step.judged else "(lost in rounding)"


def _colour(step: Step) -> str:
    return "red" if step.differs else "green"


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_dict(found: Difference) -> dict[str, Any]:
    """Plain values; an infinite Z is null."""
    first = found.first
    return {
        "sides": [side.name for side in found.sides],
        "differ": found.differ,
        "first": first and first.name,
        "sentences": sentences(found),
        "intermediates": [_step(step) for step in found.steps],
        "explanations": [
            {
                "side": e.side,
                "mistake": e.mistake.name,
                "sentence": e.mistake.sentence,
                "clauses": list(e.mistake.clauses),
                "matches": e.matches,
                "z": _number(e.z),
                "share": e.share,
            }
            for e in found.explanations
        ],
        "below_noise": [
            {"side": name, "mistake": a.name, "amplitude": a.value, "standard_error": a.standard_error}
            for name, a in found.below_noise
        ],
    }


def _step(step: Step) -> dict[str, Any]:
    where = {"row": step.where[0], "position": step.where[1]}
    return {
        "name": step.name,
        "z": _number(step.z),
        "relative": _number(step.relative),
        "judged": step.judged,
        "worst": where,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
