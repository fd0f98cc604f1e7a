"""Training loop: steps, evaluations and checkpoints. Ctrl-C takes effect between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bloomref.training import training_state
from bloomref.training.progress import Progress, shown
from bloomref.training.trainer import Trainer


def train(trainer: Trainer, folder: Path | None, save_every: int, progress: bool) -> None:
    """Run the remaining steps. Ctrl-C ends the run after the current step. Clauses: TRN-14, TRN-16.

    Args:
        trainer: state of the run.
        folder: folder of the checkpoints; None: no checkpoints are written.
        save_every: steps between two checkpoints; 0: only at the end, and on Ctrl-C.
        progress: show a progress bar on stderr.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
    """
    with deferred() as interrupt, shown(progress, trainer.done, trainer.steps) as show:
        while trainer.done < trainer.steps and not interrupt.requested:
            _advance(trainer, show)
            due = save_every > 0 and trainer.done % save_every == 0
            if folder is not None and (due or interrupt.requested or trainer.done == trainer.steps):
                training_state.save(folder, trainer.done, trainer.state())
        stopped = interrupt.requested and trainer.done < trainer.steps
    if stopped:
        raise KeyboardInterrupt
    trainer.finish()


def _advance(trainer: Trainer, show: Progress) -> None:
    before = len(trainer.history.evaluations)
    show.step(trainer.advance())
    for evaluation in trainer.history.evaluations[before:]:
        show.evaluation(evaluation)


# --- Ctrl-C --------------------------------------------------------------------------------------


class Interrupt:
    """Handler of Ctrl-C."""

    requested = False
    """True after the first Ctrl-C."""

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Record the first Ctrl-C; a second one raises KeyboardInterrupt at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Context manager that defers Ctrl-C: within the block, the first one only sets `requested`.

    Signal handlers are not changed outside the main thread, nor in a process that ignores SIGINT, such as a background
    process.
    """
    interrupt = Interrupt()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
