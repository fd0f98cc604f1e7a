"""Compare two implementations on one case: the first intermediate that differs, by how much,
and which known mistake explains it.

The intermediates of both are compared in the order of computation, each with the error that rounding explains (NUM-8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.diff.explain import Explanation, best_first, can_explain, explain
from bloomref.conformance.diff.measure import Comparison, measure
from bloomref.conformance.diff.operands import Operand
from bloomref.conformance.mistakes import MISTAKES, NO_INTERMEDIATE, Mistake
from bloomref.conformance.oracle.budgets import budget
from bloomref.conformance.oracle.matched_filter import Amplitude, project
from bloomref.conformance.oracle.truth import truth
from bloomref.errors import invalid


@dataclass(frozen=True, eq=False)
class Difference:
    """Result of `diff`.

    Args:
        case: the model and input that both operands ran.
        operands: the two operands.
        comparisons: one for each common intermediate, in the order of computation.
        explanations: the known mistakes that explain the difference, best first.
        below_noise: (operand, amplitude) of mistakes that show although every intermediate is within its budget.
    """

    case: Case
    operands: tuple[Operand, Operand]
    comparisons: list[Comparison]
    explanations: list[Explanation] = field(default_factory=list)
    below_noise: list[tuple[str, Amplitude]] = field(default_factory=list)

    @property
    def first(self) -> Comparison | None:
        """First intermediate outside its budget."""
        return next((comparison for comparison in self.comparisons if comparison.differs), None)

    @property
    def differ(self) -> bool:
        return self.first is not None


def diff(case: Case, a: Operand, b: Operand, mistakes: Sequence[Mistake] = MISTAKES) -> Difference:
    """Compare two operands, and explain the difference by known mistakes.

    Raises:
        InvalidInput: they have no intermediate in common, or of different shapes.
    """
    comparisons = [_compare(case, name, a, b) for name in common(case, a, b)]
    difference = Difference(case, (a, b), comparisons)
    if difference.first is None:
        return Difference(case, (a, b), comparisons, below_noise=_below_noise(case, (a, b), mistakes))
    candidates = [mistake for mistake in mistakes if can_explain(case, mistake, difference.first.name)]
    explanations = [
        explanation
        for operand in (a, b)
        if operand.tier and _is_off(case, operand)
        for explanation in explain(case, operand, candidates)
    ]
    return Difference(case, (a, b), comparisons, sorted(explanations, key=best_first))


def common(case: Case, a: Operand, b: Operand) -> list[str]:
    """Return the names of the intermediates that both operands have, in the order of computation.

    Raises:
        InvalidInput: there is none, or one has not the shape of the truth.
    """
    names = [name for name in truth(case).values if name in a.values and name in b.values]
    if not names:
        raise invalid(
            "operands", "an intermediate that both have", f"{sorted(a.values)[:3]} and {sorted(b.values)[:3]}"
        )
    for operand in (a, b):
        for name in names:
            shape = truth(case).values[name].shape
            if operand.values[name].shape != shape:
                raise invalid(operand.name, f"{name} of shape {shape}", f"shape {operand.values[name].shape}")
    return names


def _compare(case: Case, name: str, a: Operand, b: Operand) -> Comparison:
    with np.errstate(all="ignore"):
        error = a.values[name].astype(np.float64) - b.values[name].astype(np.float64)
    budgets = [budget(case, operand.tier) for operand in (a, b) if operand.tier]
    allowed = np.sqrt(sum((np.square(each.sigma[name]) for each in budgets), np.zeros(case.is_real.shape)))
    graded = np.logical_and.reduce([case.is_real, *(each.graded[name] for each in budgets)])
    return measure(case, name, error, allowed, graded)


def _is_off(case: Case, operand: Operand) -> bool:
    """True if the operand is outside its budget around the oracle. Of two operands that differ, at least one is."""
    oracle = Operand("oracle", truth(case).values, None)
    return any(_compare(case, name, operand, oracle).differs for name in common(case, operand, oracle))


def _below_noise(
    case: Case, operands: tuple[Operand, Operand], mistakes: Sequence[Mistake]
) -> list[tuple[str, Amplitude]]:
    """Return the mistakes that an operand makes although every logit is within its budget."""
    amplitudes: list[tuple[str, Amplitude]] = []
    for operand in operands:
        if operand.tier is not None and not case.cuts and "logits" in operand.values:
            error = operand.values["logits"].astype(np.float64) - truth(case).values["logits"]
            visible = [mistake for mistake in mistakes if mistake.first != NO_INTERMEDIATE]
            projected = project([case], operand.tier, [error], visible)
            amplitudes += [(operand.name, amplitude) for amplitude in projected if amplitude.explains]
    return amplitudes
