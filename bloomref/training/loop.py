"""The loop: steps, evaluations, checkpoints, Ctrl-C."""

from pathlib import Path

from bloomref.training import training_state
from bloomref.training.interrupt import deferred
from bloomref.training.progress import Progress, shown
from bloomref.training.trainer import Trainer


def train(trainer: Trainer, folder: Path | None, save_every: int, progress: bool) -> None:
    """Take the steps that are left; with a folder, save after every `save_every` of them (0: never) and at the end.

    Ctrl-C ends the run after the step that it falls into, and saves. Clauses: TRN-14, TRN-16.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    with deferred() as interrupt, shown(progress, trainer.done, trainer.steps) as show:
        while trainer.done < trainer.steps and not interrupt.requested:
            _advance(trainer, show)
            due = save_every > 0 and trainer.done % save_every == 0
            if folder is not None and (due or interrupt.requested or trainer.done == trainer.steps):
                training_state.save(folder, trainer.done, trainer.checkpoint())
        stopped = interrupt.requested and trainer.done < trainer.steps
    if stopped:
        raise KeyboardInterrupt
    trainer.finish()


def _advance(trainer: Trainer, show: Progress) -> None:
    before = len(trainer.history.evaluations)
    show.step(trainer.advance())
    for evaluation in trainer.history.evaluations[before:]:
        show.evaluation(evaluation)
