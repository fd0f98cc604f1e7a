"""Progress of a run on stderr: loss, tokens per second, remaining time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bloomref.training.history import Evaluation, StepRecord


class Progress(Protocol):
    """Receiver of the loop's progress reports."""

    def step(self, record: StepRecord) -> None:
        """Report one update."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Report one evaluation."""


class Silent:
    """Progress that shows nothing."""

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, evaluation: Evaluation) -> None: ...


class Bar:
    """Progress bar that is updated at each step, with a separate line for every evaluation.

    Args:
        done: number of steps before this process.
        steps: number of steps of the run.
    """

    def __init__(self, done: int, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        text = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), text)
        console = Console(file=sys.stderr, highlight=False)
        self.rich = RichProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task = self.rich.add_task("training", total=steps, completed=done, loss="-", speed="-")
        self._began, self._tokens, self._loss = time.perf_counter(), 0, 0.0

    def step(self, record: StepRecord) -> None:
        self._tokens += record.tokens
        self._loss = record.loss
        speed = self._tokens / max(1e-9, time.perf_counter() - self._began)
        self.rich.update(self._task, advance=1, loss=f"{record.loss:.4f}", speed=f"{speed:.0f}")

    def evaluation(self, evaluation: Evaluation) -> None:
        self.rich.console.print(f"step {evaluation.step}: loss {self._loss:.4f}, held out {evaluation.loss:.4f}")


@contextmanager
def shown(visible: bool, done: int, steps: int) -> Iterator[Progress]:
    """Context manager: a progress bar on stderr if `visible`, or else a `Silent`."""
    if not visible:
        yield Silent()
        return
    bar = Bar(done, steps)
    with bar.rich:
        yield bar
