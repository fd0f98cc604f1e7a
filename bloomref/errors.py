"""The errors of bloomref, and the form of their messages."""

LONGEST = 1000
"""Largest number of characters of a message."""


def visible(text: object, limit: int = LONGEST) -> str:
    """A text of unknown origin on one line: unprintable characters are escaped, and a long middle is cut out."""
    whole = text if isinstance(text, str) else represented(text)
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _cut(whole, limit))
    return _cut(line, limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - limit // 3 - 3]}...{text[-(limit // 3) :]}"


def represented(value: object) -> str:
    """`repr` of a value of unknown origin; it never fails."""
    try:
        return repr(value)
    except Exception:  # a number of more digits than Python shows, or an object that fails at it
        return f"a value of type {type(value).__name__}"


class BloomrefError(Exception):
    """Base of every error that bloomref raises on purpose. The message is one line that a terminal can show."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(visible(value) if isinstance(value, str) else value for value in arguments))


class InvalidInput(BloomrefError, ValueError):
    """An argument breaks a clause of the specification; every backend refuses it with this class."""


class Unsupported(BloomrefError, RuntimeError):
    """The request is legal, but this installation, backend or file format cannot do it."""


class BadWeights(BloomrefError, ValueError):
    """A checkpoint is damaged, hostile, incomplete or belongs to another model."""


class BadBackend(BloomrefError, TypeError):
    """A backend breaks its interface (specs/95-backend.md). The bug is in its package, not in the request."""


class BloomrefWarning(UserWarning):
    """Something that is not an error, but that the results depend on."""


def describe(name: str, expected: str, got: object, hint: str = "") -> str:
    """`name: expected ..., got ...; hint`: the form of every message. A string is shown bare: pass `repr(value)`."""
    value = got if isinstance(got, str) else represented(got)
    shown = value if len(value) <= 120 else value[:117] + "..."
    message = f"{visible(name, 240)}: expected {visible(expected, 300)}, got {visible(shown)}"
    return message + (f"; {hint}" if hint else "")


def invalid(name: str, expected: str, got: object, hint: str = "") -> InvalidInput:
    return InvalidInput(describe(name, expected, got, hint))
