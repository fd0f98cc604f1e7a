"""Outcomes of a check: the worst Z, a failure with everything needed to repeat it, or inconclusive."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.oracle.budgets import LIMIT, Judgement
from bloomref.conformance.subject import Raised

RAISED = "result"
"""Name in a judgement in place of a tensor, if the implementation raised an exception."""


class Inconclusive(Exception):
    """Rounding hides every number of the case: neither a pass nor a failure."""


@dataclass(eq=False)
class Failure(AssertionError):
    """An implementation does not have a property.

    Args:
        name: name of the property.
        says: its requirement, in a sentence.
        clauses: the clauses that are broken.
        judgement: the wrong tensor, the size of its error, and its position.
    """

    name: str
    says: str
    clauses: tuple[str, ...]
    dtype: str
    case: Case
    judgement: Judgement

    def __str__(self) -> str:
        judgement = self.judgement
        rows = {
            "clauses": ", ".join(self.clauses),
            "dtype": self.dtype,
            "tensor": judgement.name + _place(judgement),
            "Z": f"{judgement.z:.3g} (limit {LIMIT:g})",
            "because": judgement.explanation,
            "case": code(self.case),
        }
        if judgement.name == RAISED:  # no tensor, and no Z
            del rows["tensor"], rows["Z"]
        return "\n".join([f"{self.name}: {self.says}", *(f"  {key:8} {value}" for key, value in rows.items())])


def _place(judgement: Judgement) -> str:
    if judgement.where is None:
        return ""
    row, position = judgement.where
    return f", row {row}, position {position}"


def conclude(look: Callable[[], Iterable[Judgement]], failure: Callable[[Judgement], Failure]) -> float:
    """Return the largest Z of all judgements.

    Args:
        look: asks the implementation and judges its answers. An exception of the implementation (`Raised`) is a
            failure.
        failure: builds the exception for a judgement.

    Raises:
        Failure: for the first judgement that fails.
        Inconclusive: if all judgements are inconclusive.
    """
    try:
        judgements = list(look())
    except Raised as error:
        raise failure(Judgement(RAISED, "fail", np.inf, (0, 0), str(error))) from error.__cause__
    for judgement in judgements:
        if judgement.verdict == "fail":
            raise failure(judgement)
    if judgements and all(judgement.verdict == "inconclusive" for judgement in judgements):
        raise Inconclusive(judgements[-1].explanation)
    return max((judgement.z for judgement in judgements), default=0.0)


def code(case: Case) -> str:
    """Return a Python expression for the case, without the arguments that have their default."""
    return _call(case)


def _call(record: Any) -> str:
    if isinstance(record, Arrays):
        return "..."  # arrays have no short expression
    arguments = []
    for item in fields(record):
        value = getattr(record, item.name)
        default = item.default_factory() if callable(item.default_factory) else item.default
        if value != default:
            shown = _call(value) if is_dataclass(value) else repr(value)
            arguments.append(f"{item.name}={shown}")
    return f"{type(record).__name__}({', '.join(arguments)})"
