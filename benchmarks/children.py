"""Participants in processes of their own: one JSON request a line, one JSON answer a line.

A participant is stopped while another runs: threads of an idle one that still spin would disturb the other.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import last_words


class ChildError(RuntimeError):
    """A participant has ended, or answered that it failed."""


class Child:
    """A participant, started as `PYTHON -m MODULE ARGUMENTS`.

    Args:
        python: the interpreter; this one by default.
        log: a file for its stderr; shared with this process by default.
    """

    def __init__(self, module: str, *arguments: str, python: str = sys.executable, log: Path | None = None) -> None:
        self.log = log
        with open(log or os.devnull, "ab") as file:
            self.process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file if log else None,
                text=True,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Wake it, send a request, wait for its answer, stop it.

        Raises:
            ChildError: when it has ended.
        """
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended: `answer` says how
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def answer(self) -> dict[str, Any]:
        """Wait for the next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildError(f"ended with code {self.process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end; harmless when it has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _last_words(self) -> str:
        return last_words(self.log.read_text(errors="replace") if self.log else "", 200)


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: answer every request until the input ends."""
    say = own_stdout()
    for line in sys.stdin:
        say(answer(json.loads(line)))


def own_stdout() -> Callable[[dict[str, Any]], None]:
    """A function that writes one answer; from now on, what libraries print to stdout goes to stderr."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=out, flush=True)

    return say
