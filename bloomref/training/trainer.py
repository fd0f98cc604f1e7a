"""Training run: its state, its steps, and the saving and restoring of its state."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bloomref.errors import BadWeights, InvalidInput, describe
from bloomref.shapes import Array
from bloomref.training.batches import BatchSource
from bloomref.training.history import Evaluation, History, StepRecord
from bloomref.training.optimizer import AdamW, clip_by_norm, learning_rate
from bloomref.training.packing import Batch
from bloomref.training.settings import Settings
from bloomref.training.trainable import GradientFunction, Gradients, Rng
from bloomref.training.training_state import TrainingState


@dataclass(eq=False)
class Trainer:
    """State of a training run: everything that a step reads and changes.

    Args:
        variables: name -> writable, contiguous array, which steps change in place.
        gradients: computes loss and gradients of a batch with the current values of the variables.
        source: source of batches.
        settings: settings of the run.
        steps: number of steps of the run.
        optimizer: state of AdamW.
        drops: True if the model has dropout, so that steps need random generators.
        evaluate: returns the held-out loss with the current values of the variables; None: no evaluations.
        facts: name -> value; values that must be equal when the run is resumed, in addition to the settings.
        history: records of the steps and evaluations so far.
        best: variables of the best evaluation so far, if `settings.keep_best`.
    """

    variables: dict[str, Array]
    gradients: GradientFunction
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
        """Number of updates so far."""
        return len(self.history.steps)

    @np.errstate(over="ignore", invalid="ignore")  # the norm of the next gradients shows it (TRN-11)
    def advance(self) -> StepRecord:
        """Make one update, and one evaluation if it is due. Returns the record of the update."""
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
        """Gradients of a step. Its batches and dropout depend only on its number (TRN-13)."""
        accumulate = self.settings.accumulate
        parts = ((self.source(index * accumulate + part), self._rng(index, part)) for part in range(accumulate))
        return self.gradients(*next(parts)) if accumulate == 1 else accumulated(self.gradients, parts)

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
        """Restore the variables of the best evaluation, if `settings.keep_best`."""
        for name, array in self.best.items():
            self.variables[name][...] = array

    # --- saved state -----------------------------------------------------------------------------

    def state(self) -> TrainingState:
        """Complete state, for a checkpoint."""
        moments = self.optimizer.moments
        arrays = {
            "variables": self.variables,
            "first": {name: pair[0] for name, pair in moments.items()},
            "second": {name: pair[1] for name, pair in moments.items()},
        }
        groups = arrays | ({"best": self.best} if self.best else {})
        return TrainingState(self._identity() | {"history": self.history.to_dict()}, groups)

    def _identity(self) -> dict[str, Any]:
        return {"settings": self.settings.to_dict() | {"steps": self.steps}, "facts": dict(self.facts)}

    def restore(self, state: TrainingState) -> None:
        """Continue from a saved state. Clauses: TRN-13, TRN-15.

        Raises:
            InvalidInput: when a setting or fact differs, naming it.
            BadWeights: when arrays are missing, or have other shapes or dtypes.
        """
        for kind, expected in self._identity().items():
            _check_same(state.values.get(kind), expected)
        self.history = History.from_dict(state.values.get("history"))
        if self.done != state.step or self.done > self.steps:
            raise BadWeights(describe("checkpoint: history", f"{state.step} steps of {self.steps}", f"{self.done}"))
        groups = self.state().arrays
        if "best" in state.arrays:
            self.best = {name: np.empty_like(array) for name, array in self.variables.items()}
            groups = {**groups, "best": self.best}
        for group, arrays in groups.items():
            _copy(group, arrays, state.arrays.get(group, {}))
        self.optimizer.updates = self.done


def accumulated(gradients: GradientFunction, batches: Iterable[tuple[Batch, Rng]]) -> Gradients:
    """Loss and gradients of several batches as of one. Each batch is weighted by its counted tokens. Clause: TRN-12.

    Batches are processed one at a time, so that the gradients of at most two exist at once.
    """
    loss, counted, total = 0.0, 0, dict[str, Array]()
    for batch, rng in batches:
        part = gradients(batch, rng)
        loss, counted = loss + part.loss * part.counted, counted + part.counted
        for name, gradient in part.of.items():
            gradient *= part.counted
            total[name] = np.add(total[name], gradient, out=total[name]) if name in total else gradient
    for gradient in total.values():
        gradient /= max(1, counted)
    return Gradients(loss / max(1, counted), counted, total)


def _check_same(stored: object, current: Mapping[str, Any]) -> None:
    values = stored if isinstance(stored, Mapping) else {}
    for name, value in current.items():
        if name not in values or values[name] != value:
            hint = "a run must be resumed with its original settings and data"
            raise InvalidInput(describe(name, f"{values.get(name)!r}, as in the checkpoint", value, hint))


def _copy(group: str, targets: Mapping[str, Array], sources: Mapping[str, Array]) -> None:
    if targets.keys() != sources.keys():
        raise BadWeights(describe(f"checkpoint: {group}", f"{len(targets)} arrays", f"{len(sources)} others"))
    for name, target in targets.items():
        source = sources[name]
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            expected, got = (f"{array.dtype} {array.shape}" for array in (target, source))
            raise BadWeights(describe(f"checkpoint: {group}: {name}", expected, got))
        target[...] = source
