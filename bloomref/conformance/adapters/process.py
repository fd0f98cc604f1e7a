"""A running program that answers one JSON object a line with another, and the folders of its requests.

Clauses: PRG-1, PRG-2, PRG-5, PRG-11, PRG-12 (specs/97-program-protocol.md).
"""

import contextlib
import json
import shlex
import shutil
import subprocess
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory, mkdtemp
from threading import Thread
from typing import IO, Any

from bloomref.conformance.adapters.common import Failed
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe, invalid, represented

PROTOCOL = 1
TIMEOUT = 120.0
"""Default of the seconds that a request may take."""
KINDS: dict[str, type[Exception]] = {"InvalidInput": InvalidInput, "Unsupported": Unsupported, "BadWeights": BadWeights}
LONGEST_LINE = 2**24  # characters of a reply: tensors are in files
TAIL = 2000  # characters of standard error that a message quotes
PREFIX = "bloomref_program_"
GRACE = 5.0  # seconds until a program that should end is killed
REQUESTS = "requests.jsonl"
REPLAY = """#!/bin/sh
# Repeats one request of this folder: sh replay.sh 0007-logits
# With another command:               sh replay.sh 0007-logits "./mybloom --debug"
requests=$(cd "$(dirname "$0")" && pwd)/$1/{requests}
cd {directory} || exit
eval "${{2:-{command}}}" < "$requests"
"""


class Folders:
    """Folders for the files of requests: temporary ones, or numbered ones that are kept.

    Args:
        command: command line of the program.
        keep: folder of the numbered ones: `0007-logits` has the files of the seventh request, and `requests.jsonl`, the
            lines that repeat it.
    """

    def __init__(self, command: str, keep: Path | None) -> None:
        self.keep = keep and keep.resolve()
        self.count = 0
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            directory, quoted = shlex.quote(str(Path.cwd())), command.replace("\\", "\\\\").replace('"', '\\"')
            script = REPLAY.format(requests=REQUESTS, directory=directory, command=quoted)
            (self.keep / "replay.sh").write_text(script, "utf-8")

    def new(self, request: str, owner: object) -> Path:
        """Create a folder. A temporary one is removed with its owner."""
        while self.keep is not None:
            self.count += 1
            folder = self.keep / f"{self.count:04}-{request}"
            with contextlib.suppress(FileExistsError):  # of an earlier run, or of another process of this one
                folder.mkdir()
                return folder
        return scratch(owner)

    @contextlib.contextmanager
    def for_one(self, request: str) -> Iterator[Path]:
        """Context manager: a folder for one request, removed afterwards unless requests are kept."""
        if self.keep is not None:
            yield self.new(request, self)
            return
        with TemporaryDirectory(prefix=PREFIX) as folder:
            yield Path(folder)

    def write(self, folder: Path | None, lines: Sequence[Mapping[str, Any]]) -> str:
        """Write the lines that repeat the last of them, and return the command that does it, for a message."""
        if self.keep is None or folder is None:
            return ""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / REQUESTS).write_text(text, "utf-8")
        return f"; repeat it with: sh {self.keep / 'replay.sh'} {folder.name}"


def scratch(owner: object) -> Path:
    """Create a folder that is removed with its owner."""
    folder = mkdtemp(prefix=PREFIX)
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class Process:
    """A program, and the exchange of lines with it. It starts with the first request, and again if it has died.

    Args:
        command: command line with the quoting of a shell, run without one.
        timeout: seconds that a request may take; then the program is ended.
        keep: folder that keeps every request and its files; None: no request is kept.
    """

    def __init__(self, command: str, timeout: float, keep: Path | None) -> None:
        try:
            self.command, self.timeout = shlex.split(command), timeout
        except ValueError as error:  # an open quotation
            raise invalid("program", "a command line", repr(command), str(error)) from None
        if not self.command:
            raise invalid("program", "a command", "an empty text")
        self.folders = Folders(command, keep)
        self.loaded: object = None
        self.popen: subprocess.Popen[str] | None = None
        self._hello: dict[str, Any] | None = None
        self._repeat = ""

    def hello(self) -> dict[str, Any]:
        """Start the program if necessary, and return its reply to `hello`."""
        if self.popen is None:
            self._start()
        assert self._hello is not None
        return self._hello

    def ask(
        self, request: Mapping[str, Any], folder: Path | None = None, before: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Send a request and return the reply (PRG-5).

        Args:
            folder: the folder of its files.
            before: requests that the program must have answered before, to repeat this one.

        Raises:
            InvalidInput, Unsupported, BadWeights: the program refuses with that class.
            Failed: the program reports any other error, dies, times out, or violates the protocol.
        """
        self.hello()
        self._repeat = self.folders.write(folder, [HELLO, *before, request])
        reply = self._exchange(request)
        _raise_error(reply, self._repeat)
        return reply

    def close(self) -> None:
        """End the program."""
        if self.popen is not None:
            _end(self.popen)
            self.popen = None

    def _start(self) -> None:
        self.loaded = None
        self._errors = scratch(self) / "stderr"
        try:
            with self._errors.open("wb") as errors:
                self.popen = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                )
        except OSError as error:
            raise invalid("program", "a command that can be started", f"{self.command[0]}: {error.strerror}") from error
        weakref.finalize(self, _end, self.popen)
        self._lines: Queue[str] = Queue()
        assert self.popen.stdout is not None
        Thread(target=_pump, args=(self.popen.stdout, self._lines), daemon=True).start()
        folder = self.folders.new("hello", self) if self.folders.keep else None
        self._repeat = self.folders.write(folder, [HELLO])
        self._hello = self._exchange(HELLO)
        _raise_error(self._hello, self._repeat)
        if self._hello.get("protocol") != PROTOCOL:
            self.close()
            got = represented(self._hello.get("protocol"))
            raise Failed(describe("hello: protocol", str(PROTOCOL), got, "its reply names the version (PRG-2)"))

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.popen is not None
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(request) + "\n")
            self.popen.stdin.flush()
            line = self._lines.get(timeout=self.timeout)
        except (BrokenPipeError, Empty) as error:
            late = f"no reply within {self.timeout:g} s (--timeout)"
            raise self._failure(late if isinstance(error, Empty) else "it died", request) from error
        if not line:
            raise self._failure("it died", request)
        return self._parse(line, request)

    def _parse(self, line: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            expected = "one JSON object a line and nothing else (PRG-1)"
            raise self._failure(describe("standard output", expected, line.strip()), request)
        return reply

    def _failure(self, what: str, request: Mapping[str, Any]) -> Failed:
        """End the program, whose state is unknown, and return the error to raise."""
        popen, self.popen, self.loaded = self.popen, None, None
        assert popen is not None
        status = _wait(popen, min(GRACE, self.timeout)) if what == "it died" else popen.poll()
        _end(popen, grace=0.0)
        tail = self._errors.read_text("utf-8", "replace")[-TAIL:].strip()
        code = f" (status {status})" if status is not None else ""
        errors = f"; its standard error ends:\n{tail}" if tail else "; its standard error is empty"
        where = f"during the request {request['request']!r}"
        return Failed(f"the program: {what}{code} {where}{self._repeat}{errors}")


HELLO = {"request": "hello", "protocol": PROTOCOL}
"""The first request."""


def _raise_error(reply: Mapping[str, Any], repeat: str) -> None:
    """Raise the error that a reply has, if any (PRG-5)."""
    if "error" in reply:
        error = reply["error"] if isinstance(reply["error"], dict) else {"message": reply["error"]}
        kind, message = (
            value if isinstance(value, str) else represented(value)
            for value in (error.get("kind", "none"), error.get("message", "an error without a message"))
        )
        raise KINDS.get(kind, Failed)(f"the program answered: {message} (kind {kind}){repeat}")


def _pump(stream: IO[str], lines: "Queue[str]") -> None:
    """Copy the lines of a stream to a queue; an empty line marks the end.

    A line that is too long for a reply is copied in pieces, so that the first one is refused while the rest arrives.
    """
    with stream:
        while line := stream.readline(LONGEST_LINE):
            lines.put(line)
    lines.put("")


def _wait(popen: "subprocess.Popen[str]", seconds: float) -> int | None:
    """Exit status of a program that has closed its output; None if it still runs."""
    try:
        return popen.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(popen: "subprocess.Popen[str]", grace: float = GRACE) -> None:
    """Close the input of a program, which asks it to end (PRG-11); after `grace` seconds, kill it."""
    assert popen.stdin is not None
    with contextlib.suppress(OSError):  # the pipe may be closed before buffered data is written
        popen.stdin.close()
    try:
        popen.wait(grace)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
