"""The errors of bloomref, and the form of their messages."""


class BloomrefError(Exception):
    """Base of every error that bloomref raises on purpose."""


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
    value = got if isinstance(got, str) else repr(got)
    shown = value if len(value) <= 120 else value[:117] + "..."
    return f"{name}: expected {expected}, got {shown}" + (f"; {hint}" if hint else "")


def invalid(name: str, expected: str, got: object, hint: str = "") -> InvalidInput:
    return InvalidInput(describe(name, expected, got, hint))
