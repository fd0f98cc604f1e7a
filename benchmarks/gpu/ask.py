"""Runs participants in child processes, which free all their memory.

A slow or failed participant is reported with a reason.
"""

import json
import os
import queue
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

from benchmarks.machine import last_words

ROOT = Path(__file__).parents[2]
Take = Callable[[str, dict[str, Any]], None]
"""Callback for a participant's figures. The last ones have the key `done`."""


class Ended(Exception):
    """A process gave no more figures; the message is the reason."""


def ask(names: Sequence[str], command: Callable[[list[str]], list[str]], limit: float, take: Take) -> None:
    """Ask all participants in one process. If a participant ends it, start it again for the remaining ones.

    Args:
        names: The participants.
        command: Returns the command line of a process for these participants.
        limit: Seconds for one participant.
        take: Callback for figures.
    """
    left = list(names)
    while left:
        try:
            for message in messages(command(left), limit):
                take(message["participant"], message["figures"])
                if message["figures"].get("done"):
                    left.pop(0)
            if left:
                raise Ended("no answer")
        except Ended as error:
            if left:
                take(left.pop(0), {"absent": str(error), "done": True})


def messages(command: list[str], limit: float) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that a command prints, one per line.

    `limit` is the time in seconds from one `done` to the next.

    Raises:
        Ended: The command failed, with the end of its error output, or took too long.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0, bufsize=1
        )
        try:
            yield from _parsed(process, limit)
            if process.wait():
                raise Ended(_last_words(log))
        finally:
            with suppress(ProcessLookupError):  # the group includes torch's compiler processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _parsed(process: "subprocess.Popen[str]", limit: float) -> Iterator[dict[str, Any]]:
    lines: queue.Queue[str | None] = queue.Queue()
    Thread(target=_pump, args=(process, lines), daemon=True).start()
    deadline = monotonic() + limit
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - monotonic()))
        except queue.Empty:
            raise Ended(f"ran out of time: {limit:.0f} s") from None
        if line is None:
            return
        message = json.loads(line)
        yield message
        if message["figures"].get("done"):
            deadline = monotonic() + limit


def _pump(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout as stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _last_words(log: Any) -> str:
    log.seek(0)
    return last_words(log.read().decode(errors="replace"), 300)
