"""One trial: a damaged input, the question, and the kind of its answer."""

import io
import re
import shutil
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bloomref.errors import LONGEST, BloomrefError

KINDS = ("good", "traceback", "killed", "wrong", "message", "nameless")
"""Refused well or rightly accepted; an exception that is not documented; a hang, a crash or no memory; accepted
wrongly; a message of many lines, control characters or too many characters; one that names neither file nor argument.
"""
ACCEPTED = "accepted"
_EXIT_CODES = (2, 3, 4, 5)


class Refused(Exception):
    """A command ended with a documented exit code; the message is its standard error."""


@dataclass(frozen=True)
class Trial:
    """A damaged input.

    Args:
        what: what was done to it.
        ask: the question. It returns an answer or refuses.
        judge: what is wrong with an answer; an empty text if it is right.
        names: a message has one of these; none: any message is good.
    """

    what: str
    ask: Callable[[], Any]
    judge: Callable[[Any], str] = lambda _: ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surface:
    """Inputs of one kind.

    Args:
        name: its name on the command line.
        title: its row of the table.
        make: writes the undamaged input into a new folder, once a worker.
        trial: makes a damaged input from (the undamaged one, a path that does not exist yet, a generator).
        needs: a module without which the surface is left out.
    """

    name: str
    title: str
    make: Callable[[Path], object]
    trial: Callable[[Path, Path, Generator], Trial]
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of one trial: one of `KINDS`, and what happened."""

    kind: str
    note: str = ""


def attempt(surface: Surface, base: Path, scratch: Path, seed: int, index: int) -> Outcome:
    """Make, ask and judge one input. The seed, the surface and the index determine it."""
    rng = np.random.default_rng([seed, zlib.crc32(surface.name.encode()), index])
    try:
        return outcome(surface.trial(base, scratch, rng))
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)


def outcome(trial: Trial) -> Outcome:
    """Ask, and name the kind of the answer."""
    try:
        with redirect_stdout(_Stream()), redirect_stderr(_Stream()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = trial.ask()
    except KeyboardInterrupt:
        raise
    except (BloomrefError, Refused) as error:
        return _message(str(error), trial)
    except MemoryError as error:
        return Outcome("killed", f"{trial.what}: {_place(error)}")
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return Outcome("traceback", f"{trial.what}: {_place(error)}")
    problem = trial.judge(answer)
    return Outcome("wrong", f"{trial.what}: {problem}") if problem else Outcome("good", ACCEPTED)


def _message(message: str, trial: Trial) -> Outcome:
    if not message.isprintable() or len(message) > LONGEST or not message:
        return Outcome("message", f"{trial.what}: {message[:200]!r}")
    if trial.names and not any(name.lower() in message.lower() for name in trial.names if name):
        return Outcome("nameless", f"{trial.what}: {message}")
    return Outcome("good", message)


def _place(error: BaseException) -> str:
    """The error and the last line of the library that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/bloomref/" in frame.filename]
    last = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{last}: {str(error)[:160]!r}"


class _Stream(io.TextIOWrapper):
    """A text stream in memory that has bytes below, as a terminal's has."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


def command(arguments: list[str]) -> str:
    """Run a command line in this process and return what it printed.

    Raises:
        Refused: with the message, for a documented exit code of errors, or for 1 with a message, as of a program that
            breaks down.
        RuntimeError: for another one.
    """
    from bloomref.cli.app import run

    out, err, stdin = _Stream(), _Stream(), sys.stdin
    sys.stdin = _Stream()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run(arguments)
    finally:
        sys.stdin = stdin
    failed = code == 1 and re.search("^bloomref: (?!warning)", err.text(), re.MULTILINE)
    if code in (0, 1) and not failed:
        return out.text()
    if failed or code in _EXIT_CODES:
        raise Refused(_one_message(err.text()))
    raise RuntimeError(f"exit code {code}")


def _one_message(text: str) -> str:
    """The message on standard error: without earlier remarks, and without the frame of a wrong option."""
    if "─ Error ─" in text:
        inside = re.findall(r"^│ (.*) │$", text, re.MULTILINE)
        return " ".join(" ".join(inside).split())
    _, mark, message = f"\n{text.rstrip()}".rpartition("\nbloomref: ")  # remarks before it are no message
    return message if mark else text
