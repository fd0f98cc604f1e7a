"""The three ways in which bloomref refuses, and the one form of their messages."""


class BloomrefError(Exception):
    """Base of every error that bloomref raises on purpose."""


class InvalidInput(BloomrefError, ValueError):
    """An argument breaks a clause of the specification; every backend refuses it with this class."""


class Unsupported(BloomrefError, RuntimeError):
    """The request is legal, but this installation, backend or file format cannot do it."""


class BadWeights(BloomrefError, ValueError):
    """A checkpoint is damaged, hostile, incomplete or belongs to another model."""


def describe(name: str, expected: str, got: object, hint: str = "") -> str:
    """`name: expected ..., got ...; hint`: the form of every message. A string is shown bare: pass `repr(value)`."""
    text = f"{name}: expected {expected}, got {_short(got)}"
    return f"{text}; {hint}" if hint else text


def _short(value: object, limit: int = 120) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def invalid(name: str, expected: str, got: object, hint: str = "") -> InvalidInput:
    return InvalidInput(describe(name, expected, got, hint))
