"""Participants in separate processes: one JSON request a line, one JSON answer a line.

A participant is stopped (SIGSTOP) while another runs: spinning threads of an idle one would disturb the other.
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
    """A participant has ended, or reports a failure."""


class Child:
    """The process of a participant, started as `PYTHON -m MODULE ARGUMENTS`.

    Args:
        python: the interpreter; the current one by default.
        log: a file for its stderr; by default that of the current process.
        checkout: the folder whose packages the process imports; by default those of the current process.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        python: str = sys.executable,
        log: Path | None = None,
        checkout: Path | None = None,
    ) -> None:
        self.log = log
        environment = os.environ if checkout is None else os.environ | {"PYTHONPATH": str(checkout)}
        with open(log or os.devnull, "ab") as file:
            self.process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file if log else None,
                text=True,
                cwd=checkout,
                env=environment,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Continue the process, send a request, wait for the answer, stop the process.

        Raises:
            ChildError: when the process has ended.
        """
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # the process has ended: `answer` reports how
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildError(f"ended with code {self.process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process; does nothing if it has ended."""
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
    """The participant's side: answer every request until the input ends."""
    say = own_stdout()
    for line in sys.stdin:
        say(answer(json.loads(line)))


def own_stdout() -> Callable[[dict[str, Any]], None]:
    """Redirect stdout to stderr, where libraries may print; returns a function that writes one answer."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=out, flush=True)

    return say
