"""Checks of arguments and names. Every `check_` function raises InvalidInput, naming the argument."""

from collections.abc import Callable, Collection, Iterable
from math import isfinite
from numbers import Integral, Real
from typing import Any

from bloomref.errors import InvalidInput, describe, invalid, represented

Domain = Callable[[float], bool]


def is_integer(value: object) -> bool:
    """True for integers of Python and NumPy; a bool is none (CFG-1)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    if not is_integer(value) or value < minimum:
        raise invalid(name, f"an integer >= {minimum}", represented(value))
    if maximum is not None and value > maximum:
        raise invalid(name, f"an integer <= {maximum}", value)


def check_real(name: str, value: Any, expected: str = "a finite number", domain: Domain = isfinite) -> None:
    """Refuse a value that is not a finite real number, or outside the domain; `expected` describes the domain."""
    try:
        is_number = not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)
    except OverflowError:  # an integer that no float can hold
        is_number = False
    if not is_number or not domain(float(value)):
        raise invalid(name, expected, represented(value))


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise invalid(name, "True or False", represented(value))


def check_known(names: Iterable[str], known: Collection[str], kind: str) -> None:
    """Refuse the first name that is not known; `kind` is what a known one would be: "an argument of generate"."""
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"known: {', '.join(known)}"
            raise InvalidInput(describe(str(name), kind, "an unknown name", hint))


def did_you_mean(name: str, known: Collection[str], count: int = 1) -> str:
    """The known names closest to a name, `count` at most, as a question; empty where none is close."""
    from difflib import get_close_matches  # not needed unless something is wrong

    close = " or ".join(get_close_matches(name, known, count))
    return f"did you mean {close}?" if close else ""


def mismatch(expected: Collection[str], actual: Collection[str]) -> str:
    """Difference between two sets of names, as `missing a, b; unknown c`; empty where they are equal."""
    groups = {"missing": [n for n in expected if n not in actual], "unknown": [n for n in actual if n not in expected]}
    more = {kind: f" and {len(names) - 3} more" if len(names) > 3 else "" for kind, names in groups.items()}
    return "; ".join(f"{kind} {', '.join(names[:3])}{more[kind]}" for kind, names in groups.items() if names)
