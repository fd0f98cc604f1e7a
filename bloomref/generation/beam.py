"""Beam search as transformers defines it (`early_stopping=False`), each prompt by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.generation.options import GenerationOptions
from bloomref.generation.sampling import log_softmax
from bloomref.generation.stopping import Stopping
from bloomref.generation.task import Row, Task
from bloomref.shapes import Array, Float


@dataclass(frozen=True)
class Hypothesis:
    """A continuation and the sum of its processed log-probabilities."""

    new_ids: tuple[int, ...]
    total: float

    def score(self, length_penalty: float) -> float:
        return self.total / len(self.new_ids) ** length_penalty


def beam_search(task: Task) -> Iterator[tuple[int, int]]:
    """The best continuation of every prompt. The running hypotheses of all prompts share one cache."""
    beams, decoder, process = [Beam(row, task) for row in task.rows()], task.decoder(), task.processors()
    live = beams
    while live:
        scores = log_softmax(decoder.logits())
        parents: list[int] = []
        offset = 0
        for beam in live:
            count = len(beam.running)
            rows = range(offset, offset + count)
            processed = [process(scores[i], beam.history(h)) for i, h in zip(rows, beam.running, strict=True)]
            parents += [offset + parent for parent in beam.step(np.stack(processed))]
            offset += count
        live = [beam for beam in live if beam.running]
        if live:
            decoder.advance(parents, [h.new_ids[-1] for beam in live for h in beam.running])
    for beam in beams:
        yield from ((beam.row.index, token_id) for token_id in beam.best().new_ids)


class Beam:
    """The hypotheses of one prompt: those that still run, best first, and the best that have ended."""

    def __init__(self, row: Row, task: Task) -> None:
        self.row = row
        self.running = [Hypothesis((), 0.0)]
        self._ended: list[Hypothesis] = []
        self._options: GenerationOptions = task.options
        self._stopping: Stopping = task.stopping
        # so many that `num_beams` go on even when every stop token is among the best continuations of every beam
        self._width = max(2, 1 + len(task.stopping.token_ids)) * task.options.num_beams

    def history(self, hypothesis: Hypothesis) -> list[int]:
        return [*self.row.history, *hypothesis.new_ids]

    def step(self, log_probabilities: Float[Array, "N V"]) -> list[int]:
        """Extend the running hypotheses by one token; returns the parents of those that run on."""
        num_beams = self._options.num_beams
        stuck, next_running, parents = self.running, [], []
        for rank, (parent, hypothesis) in enumerate(self._best_extensions(log_probabilities)):
            if not self._ends(hypothesis):
                next_running.append(hypothesis)
                parents.append(parent)
            elif rank < num_beams:
                self._ended.append(hypothesis)
        self._ended = sorted(self._ended, key=self._score, reverse=True)[:num_beams]
        self.running = next_running[:num_beams]
        if not self._ended and not self.running:
            self._ended = stuck[:1]  # every continuation is forbidden
        if not self._can_improve():
            self.running = []
        return parents[: len(self.running)]

    def best(self) -> Hypothesis:
        return self._ended[0]

    def _best_extensions(self, log_probabilities: Float[Array, "N V"]) -> list[tuple[int, Hypothesis]]:
        """(parent, extension) of the highest totals; among equals the earlier parent, then the lower id."""
        totals = log_probabilities + np.array([[h.total] for h in self.running])
        flat = totals.ravel()
        extensions = []
        for index in _highest(flat, self._width):
            parent, token_id = divmod(index, totals.shape[1])
            extended = (*self.running[parent].new_ids, token_id)
            extensions.append((parent, Hypothesis(extended, float(flat[index]))))
        return extensions

    def _ends(self, hypothesis: Hypothesis) -> bool:
        return len(hypothesis.new_ids) == self.row.budget or self._stopping.ends(self.history(hypothesis))

    def _score(self, hypothesis: Hypothesis) -> float:
        return hypothesis.score(self._options.length_penalty)

    def _can_improve(self) -> bool:
        """Whether the best running hypothesis, at its present length, beats the worst of a full set of ended ones."""
        if not self.running or len(self._ended) < self._options.num_beams:
            return bool(self.running)
        return self._score(self.running[0]) > self._score(self._ended[-1])


def _highest(values: Float[Array, " N"], count: int) -> Sequence[int]:
    """The indices of the `count` highest values above -inf, in descending order; the lower index among equals."""
    if values.size > count:
        edge = np.partition(values, -count)[-count]
        indices = np.flatnonzero(values >= edge)
    else:
        indices = np.arange(values.size)
    order = indices[np.argsort(-values[indices], kind="stable")][:count]
    return [int(i) for i in order if values[i] > -np.inf]
