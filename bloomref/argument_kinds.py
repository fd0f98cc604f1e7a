"""Checks of the kind of an argument, at the public functions. Each raises InvalidInput, naming the argument."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bloomref.errors import invalid, represented


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another type; `expected` describes the right one."""
    if not isinstance(value, kind):
        raise invalid(name, expected, represented(value))


def check_mapping(name: str, value: object) -> None:
    check_kind(name, value, Mapping, "a dictionary")


def check_text(name: str, value: object) -> None:
    check_kind(name, value, str, "a text")


def check_collection(name: str, value: object, expected: str) -> None:
    """Refuse what has no elements, and a text, whose elements are characters."""
    has_elements = isinstance(value, Collection) and getattr(value, "ndim", 1) > 0
    if isinstance(value, str | bytes) or not has_elements:
        raise invalid(name, expected, represented(value))


def as_path(name: str, value: Any) -> Path:
    """The path of an argument."""
    check_kind(name, value, (str, os.PathLike), "a path")
    return Path(value)
