"""What a property reports: a failure with everything needed to repeat it, or that nothing could be said."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import LIMIT, Judgement


class Inconclusive(Exception):
    """Every number that the property looked at drowns in rounding: neither a pass nor a failure."""


@dataclass(eq=False)
class Failure(AssertionError):
    """A property does not hold.

    Args:
        name: of the property; `says` is it, in a sentence.
        clauses: that are broken.
        judgement: the tensor, how far it is off, and where.
    """

    name: str
    says: str
    clauses: tuple[str, ...]
    dtype: str
    case: Case
    judgement: Judgement

    def __str__(self) -> str:
        found = self.judgement
        rows = {
            "clauses": ", ".join(self.clauses),
            "dtype": self.dtype,
            "tensor": f"{found.name}, row {found.where[0]}, position {found.where[1]}",
            "Z": f"{found.z:.3g} (limit {LIMIT:g})",
            "because": found.explanation,
            "case": code(self.case),
        }
        return "\n".join([f"{self.name}: {self.says}", *(f"  {key:8} {value}" for key, value in rows.items())])


def code(case: Case) -> str:
    """The line of Python that makes the case again; what has its default is left out."""
    return _call(case)


def _call(value: Any) -> str:
    parts = []
    for item in fields(value):
        given = getattr(value, item.name)
        default = item.default_factory() if callable(item.default_factory) else item.default
        if given != default:
            shown = _call(given) if is_dataclass(given) else repr(given)
            parts.append(f"{item.name}={shown}")
    return f"{type(value).__name__}({', '.join(parts)})"
