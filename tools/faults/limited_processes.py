"""Worker processes with a limit of memory and of time. One that dies is replaced."""

import multiprocessing
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.faults.surfaces import SURFACES
from tools.faults.trials import Outcome, attempt

SECONDS = 20
"""A trial that takes longer hangs."""
MEMORY = 6 * 2**30
"""Address space of a worker in bytes."""
_START = 120  # seconds for the imports and the undamaged input
_SPAWN = multiprocessing.get_context("spawn")
Job = tuple[str, int]
"""Name of a surface, index of an input."""


def _serve(connection: Connection, name: str, place: str, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):  # the kit writes to the descriptors
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.environ |= {"HOME": place, "HF_HUB_OFFLINE": "1", "HF_HOME": f"{place}/hub", "COLUMNS": "120"}
    folder = Path(place, "work", "here")  # `..` is a folder of the worker, too
    folder.mkdir(parents=True)
    os.chdir(folder)
    surface = SURFACES[name]
    base = Path(place, "undamaged")
    surface.make(base)
    connection.send("ready")
    while True:
        index = connection.recv()
        connection.send(attempt(surface, base, Path(place, f"input-{index}"), seed, index))


class _Worker:
    """A process that answers for one surface."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self._place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._connection, other = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(other, name, self._place.name, seed), daemon=True)
        self._process.start()
        other.close()
        if not self._connection.poll(_START) or self._receive() != "ready":
            self.close()
            raise RuntimeError(f"{name}: the undamaged input cannot be made")

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return None

    def ask(self, index: int) -> Outcome | None:
        """The outcome of an input; None: no answer in time."""
        self._connection.send(index)
        return self._receive() if self._connection.poll(SECONDS) else None

    def close(self) -> str:
        """End the process, and say how it ended."""
        how = "took longer than 20 seconds"
        self._process.join(0.2)
        if self._process.exitcode is not None:
            how = f"the process ended with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._place.cleanup()
        return how


def run(jobs: Sequence[Job], seed: int, processes: int, report: Callable[[Job, Outcome], object]) -> None:
    """Do every job, and report each outcome. Ends early at `KeyboardInterrupt`."""
    rest, lock = iter(jobs), threading.Lock()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for job, outcome in _outcomes(_shared(rest, lock), seed):
                with lock:
                    report(job, outcome)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def _shared(jobs: Iterator[Job], lock: threading.Lock) -> Iterator[Job]:
    while True:
        with lock:
            job = next(jobs, None)
        if job is None:
            return
        yield job


def _outcomes(jobs: Iterator[Job], seed: int) -> Iterator[tuple[Job, Outcome]]:
    worker: _Worker | None = None
    try:
        for name, index in jobs:
            if worker is not None and worker.name != name:
                worker.close()
                worker = None
            worker = worker or _Worker(name, seed)
            outcome = worker.ask(index)
            if outcome is None:
                outcome, worker = Outcome("killed", worker.close()), None
            yield (name, index), outcome
    finally:
        if worker is not None:
            worker.close()
