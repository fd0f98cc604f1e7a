"""Read the expression that a failure prints, `Case(BloomConfig(...), ...)`, without executing it."""

import ast
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.lora_cases import Lora
from bloomref.errors import BloomrefError, InvalidInput, invalid
from bloomref.validation import check_known, did_you_mean

RECORDS: dict[str, type[Any]] = {"Case": Case, "BloomConfig": BloomConfig, "Lora": Lora}
"""Classes whose calls an expression may have."""


def case_of(text: str) -> Case:
    """Return a case: of its expression, or the fixed case of that name.

    Raises:
        InvalidInput: for any other name or expression. Nothing is executed.
    """
    fixed = {case.name: case for case in FIXED_CASES}
    if text in fixed:
        return fixed[text]
    if "(" not in text:
        names = did_you_mean(text, fixed) or f"fixed cases: {', '.join(fixed)}"
        raise invalid("case", "an expression Case(...) or the name of a fixed case", repr(text), names)
    try:
        case = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        if isinstance(error, BloomrefError):
            raise
        raise invalid("case", "an expression as a failure prints it", repr(text), str(error)) from None
    if not isinstance(case, Case):
        raise invalid("case", "an expression Case(...)", repr(text))
    return case


def _value(node: ast.expr) -> Any:
    """Value of a literal, a tuple, a frozenset, or a call of a known class."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node, node.func.id)
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    if isinstance(node, ast.Constant) and node.value is ...:
        raise InvalidInput("case: `...` stands for arrays that are not drawn; name their vector by --vector")
    return ast.literal_eval(node)


def _call(node: ast.Call, name: str) -> Any:
    arguments = [_value(argument) for argument in node.args]
    if name == "frozenset":
        return frozenset(*arguments)
    check_known([name], [*RECORDS, "frozenset"], "one of Case, BloomConfig, Lora, frozenset")
    make: Callable[..., Any] = RECORDS[name]
    options = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    check_known(options, [item.name for item in fields(RECORDS[name])], f"an argument of {name}")
    return make(*arguments, **options)
