"""Errors of the operating system and of Python as one sentence and an exit code."""

import errno

from bloomref.errors import visible

WRONG_INPUT, NOT_POSSIBLE = 2, 3
_OF_PATHS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EROFS,
    errno.EINVAL,
}
"""Errors that another path would not have."""
_SIZES = ("Maximum allowed dimension", "array is too big", "cannot fit", "Exceeds the limit", "maximum supported dimen")
"""Beginnings of the messages of NumPy and Python that refuse a size or a number."""


def sentence(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit code for an error; None: it is none of these, but a bug."""
    if isinstance(error, MemoryError):
        return f"memory: {visible(str(error) or 'this machine has too little for the request', 300)}", NOT_POSSIBLE
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeError):
        return _of_unicode(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home"):
        return "path: expected the home of a user after ~, got one that the system does not know", WRONG_INPUT
    if isinstance(error, RecursionError):
        return "input: expected less nesting; Python's limit is reached", WRONG_INPUT
    if isinstance(error, OverflowError) or (isinstance(error, ValueError) and str(error).startswith(_SIZES)):
        return _joined("a number is too large", error), WRONG_INPUT
    return None


def _joined(start: str, error: BaseException) -> str:
    return f"{start} ({visible(str(error), 300)})" if str(error) else start


def _of_system(error: OSError) -> tuple[str, int]:
    path = "" if error.filename is None else f"{visible(str(error.filename), 240)}: "
    reason = error.strerror or str(error) or type(error).__name__
    code = WRONG_INPUT if error.errno in _OF_PATHS else NOT_POSSIBLE
    return f"{path or 'system: '}{visible(reason, 300)}", code


def _of_unicode(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return f"input: expected {error.encoding}, got the byte {error.object[error.start]:#04x} at {error.start}", 2
    if isinstance(error, UnicodeEncodeError):
        character = ascii(error.object[error.start])
        if error.encoding in ("utf-8", "utf8"):
            return f"text: expected valid Unicode, got the lone surrogate {character} at {error.start}", WRONG_INPUT
        hint = "set PYTHONIOENCODING=utf-8"
        return f"output: expected an encoding with {character}, got {error.encoding}; {hint}", NOT_POSSIBLE
    return f"text: {visible(str(error), 300)}", WRONG_INPUT
