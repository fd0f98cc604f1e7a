"""Checks of the kind of an argument, at the public functions. Each raises InvalidInput, naming the argument."""

import errno
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


def check_unicode(name: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(name, "valid Unicode", repr(text[error.start]), f"at {error.start}") from None


def check_word(name: str, value: object, words: Collection[str]) -> None:
    """Refuse what is none of the words. An array, too, whose comparison with a word is no truth value."""
    if not isinstance(value, str) or value not in words:
        raise invalid(name, " or ".join(map(repr, words)), represented(value))


def check_collection(name: str, value: object, expected: str) -> None:
    """Refuse what has no elements, and a text, whose elements are characters."""
    has_elements = isinstance(value, Collection) and getattr(value, "ndim", 1) > 0
    if isinstance(value, str | bytes) or not has_elements:
        raise invalid(name, expected, represented(value))


def as_path(name: str, value: Any) -> Path:
    """The path of an argument, if the system can have such a path: then no later use of it fails in the system."""
    check_kind(name, value, (str, os.PathLike), "a path")
    try:
        path = Path(value)
        os.stat(path)
    except (ValueError, TypeError):  # a zero byte, a character that file names cannot have, or a path of bytes
        raise invalid(name, "a path that the system can have", represented(value)) from None
    except OSError as error:  # nothing is there, or not for us: whoever opens it says so
        if error.errno == errno.ENAMETOOLONG:
            raise invalid(name, "a path that the system can have", represented(value), "it is too long") from None
    return path
