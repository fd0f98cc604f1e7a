"""One run of training: its state, one step of it, and what a checkpoint keeps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bloomref.errors import BadWeights, InvalidInput, describe
from bloomref.shapes import Array
from bloomref.training.batches import BatchSource
from bloomref.training.history import Evaluation, History, StepRecord
from bloomref.training.optimizer import AdamW, clip_by_norm
from bloomref.training.schedule import learning_rate
from bloomref.training.settings import Settings
from bloomref.training.step import Gradients, Step, accumulated
from bloomref.training.training_state import Checkpoint


@dataclass(eq=False)
class Trainer:
    """Everything that a step reads and changes.

    Args:
        variables: name -> a writable, contiguous array, changed in place.
        step: gives the gradients of the variables as they are.
        drops: whether the model drops anything, so that steps need generators.
        evaluate: the held-out loss of the variables as they are, or None.
        facts: name -> value of what must be the same for a run to be continued, beside the settings.
    """

    variables: dict[str, Array]
    step: Step
    source: BatchSource
    settings: Settings
    steps: int
    optimizer: AdamW
    drops: bool
    evaluate: Callable[[], float] | None
    facts: Mapping[str, Any]
    history: History = field(default_factory=History)
    best: dict[str, Array] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Updates so far."""
        return len(self.history.steps)

    def advance(self) -> StepRecord:
        """One update, and the evaluation if one is due."""
        index = self.done
        rate = learning_rate(index, self.steps, self.settings)
        gradients = self._gradients(index)
        norm = clip_by_norm(gradients.of, self.settings.clip)
        self.optimizer.update(self.variables, gradients.of, rate)
        record = StepRecord(index + 1, gradients.loss, rate, norm, gradients.counted)
        self.history.steps.append(record)
        if self.evaluate is not None and self._evaluation_is_due():
            self._record(self.evaluate())
        return record

    def _gradients(self, index: int) -> Gradients:
        """Clause: TRN-13: batch and dropout of a step depend on its number only."""
        accumulate = self.settings.accumulate
        parts = ((self.source(index * accumulate + part), self._rng(index, part)) for part in range(accumulate))
        return self.step(*next(parts)) if accumulate == 1 else accumulated(self.step, parts)

    def _rng(self, index: int, part: int) -> np.random.Generator | None:
        return np.random.default_rng([self.settings.seed, 1, index, part]) if self.drops else None

    def _evaluation_is_due(self) -> bool:
        every = self.settings.eval_every
        return self.done == self.steps or (every > 0 and self.done % every == 0)

    def _record(self, loss: float) -> None:
        best = self.history.best
        if self.settings.keep_best and loss < (math.inf if best is None else best.loss):
            self.best = {name: array.copy() for name, array in self.variables.items()}
        self.history.evaluations.append(Evaluation(self.done, loss))

    def finish(self) -> None:
        """Put the best weights back, if they were asked for."""
        for name, array in self.best.items():
            self.variables[name][...] = array

    # --- checkpoints -----------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        moments = self.optimizer.moments
        arrays = {
            "variables": self.variables,
            "first": {name: pair[0] for name, pair in moments.items()},
            "second": {name: pair[1] for name, pair in moments.items()},
        }
        groups = arrays | ({"best": self.best} if self.best else {})
        return Checkpoint(self._identity() | {"history": self.history.to_dict()}, groups)

    def _identity(self) -> dict[str, Any]:
        return {"settings": self.settings.to_dict() | {"steps": self.steps}, "facts": dict(self.facts)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint stands. Clauses: TRN-13, TRN-15.

        Raises:
            InvalidInput: naming a setting or fact that differs; BadWeights: when arrays are missing or have other shapes.
        """
        for kind, expected in self._identity().items():
            _check_same(checkpoint.state.get(kind), expected)
        self.history = History.from_dict(checkpoint.state.get("history"))
        groups = self.checkpoint().arrays
        if "best" in checkpoint.arrays:
            self.best = {name: np.empty_like(array) for name, array in self.variables.items()}
            groups = {**groups, "best": self.best}
        for group, arrays in groups.items():
            _copy(group, arrays, checkpoint.arrays.get(group, {}))
        self.optimizer.updates = self.done


def _check_same(stored: object, wanted: Mapping[str, Any]) -> None:
    found = stored if isinstance(stored, Mapping) else {}
    for name, value in wanted.items():
        if name not in found or found[name] != value:
            expected = f"{found.get(name)!r}, as in the checkpoint"
            raise InvalidInput(
                describe(name, expected, value, "a run is resumed with the settings and data that it began with")
            )


def _copy(group: str, targets: Mapping[str, Array], sources: Mapping[str, Array]) -> None:
    if targets.keys() != sources.keys():
        raise BadWeights(describe(f"checkpoint: {group}", f"{len(targets)} arrays", f"{len(sources)} others"))
    for name, target in targets.items():
        source = sources[name]
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            expected, got = (f"{array.dtype} {array.shape}" for array in (target, source))
            raise BadWeights(describe(f"checkpoint: {group}: {name}", expected, got))
        target[...] = source
