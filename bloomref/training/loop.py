"""The training loop: steps, evaluations, checkpoints, and Ctrl-C between two steps, never within one."""

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
    """Take the remaining steps. With a folder, save after every `save_every` of them (0: never) and at the end.

    Ctrl-C ends the run after the current step, and saves the state. Clauses: TRN-14, TRN-16.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
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
    """A handler of Ctrl-C, which sets `requested`."""

    requested = False

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Record the first Ctrl-C; a second one raises KeyboardInterrupt at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Defer Ctrl-C: within the block the first one only sets `requested`.

    Signals stay as they are outside the main thread, and in a process that ignores them, as one in the background does.
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
