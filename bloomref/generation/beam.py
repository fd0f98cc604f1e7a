"""Beam search as in transformers; the result of a prompt does not depend on the batch."""

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
    """A continuation, and the sum `total` of its log-probabilities after the logits processors."""

    new_ids: tuple[int, ...]
    total: float

    def score(self, length_penalty: float) -> float:
        """The total, divided by (number of new tokens) ** length_penalty."""
        return self.total / len(self.new_ids) ** length_penalty


def beam_search(task: Task) -> Iterator[tuple[int, int]]:
    """(row, new token id) of the best hypotheses of every prompt. All running hypotheses share one KV cache."""
    beams, decoder, process = [Beam(row, task) for row in task.rows()], task.decoder(), task.processors()
    live = beams
    while live:
        scores = log_softmax(decoder.logits())
        parents: list[int] = []
        offset = 0
        for beam in live:
            count = len(beam.running)
            histories, length = [beam.history(h) for h in beam.running], beam.row.prompt_length
            processed = process.each(scores[offset : offset + count], histories, length)
            parents += [offset + parent for parent in beam.step(processed)]
            offset += count
        live = [beam for beam in live if beam.running]
        if live:
            decoder.advance(parents, [h.new_ids[-1] for beam in live for h in beam.running])
    count = task.options.num_return_sequences
    for beam in beams:
        for rank, hypothesis in enumerate(beam.best(count)):
            yield from ((beam.row.index * count + rank, token_id) for token_id in hypothesis.new_ids)


class Beam:
    """Hypotheses of one prompt: the running ones, best first, and the best `num_beams` of the finished ones."""

    def __init__(self, row: Row, task: Task) -> None:
        self.row = row
        self.running = [Hypothesis((), 0.0)]
        self._finished: list[Hypothesis] = []
        self._options: GenerationOptions = task.options
        self._stopping: Stopping = task.stopping
        # `num_beams` hypotheses remain even if every stop token is among the best extensions of every beam
        self._width = max(2, 1 + len(task.stopping.token_ids)) * task.options.num_beams

    def history(self, hypothesis: Hypothesis) -> list[int]:
        """Real tokens of the prompt and the hypothesis."""
        return [*self.row.history, *hypothesis.new_ids]

    def step(self, log_probabilities: Float[Array, "N V"]) -> list[int]:
        """Extend the running hypotheses by one token; returns the index of each new one's parent among the old ones."""
        num_beams = self._options.num_beams
        previous, next_running, parents = self.running, [], []
        for rank, (parent, hypothesis) in enumerate(self._best_extensions(log_probabilities)):
            if not self._ends(hypothesis):
                next_running.append(hypothesis)
                parents.append(parent)
            elif rank < num_beams:
                self._finished.append(hypothesis)
        self._finished = sorted(self._finished, key=self._score, reverse=True)[:num_beams]
        self.running = next_running[:num_beams]
        if not self._finished and not self.running:
            self._finished = previous[:1]  # every extension is forbidden
        if not self._can_improve():
            self.running = []
        return parents[: len(self.running)]

    def best(self, count: int) -> Sequence[Hypothesis]:
        """The finished hypotheses of the highest scores, best first; fewer than `count` if there are no more."""
        return self._finished[:count]

    def _best_extensions(self, log_probabilities: Float[Array, "N V"]) -> list[tuple[int, Hypothesis]]:
        """(parent, extension) pairs of the highest totals; of equal ones the earlier parent, then the lower id."""
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
        """True if the best running hypothesis may still displace one of `num_beams` finished ones (GEN-15)."""
        if not self.running or len(self._finished) < self._options.num_beams:
            return bool(self.running)
        if self._options.early_stopping is True:
            return False
        best, penalty = self.running[0], self._options.length_penalty
        longest = self._options.early_stopping == "never" and penalty > 0
        length = self.row.budget if longest else len(best.new_ids)
        return best.total / length**penalty > self._score(self._finished[-1])


def _highest(values: Float[Array, " N"], count: int) -> Sequence[int]:
    """Indices of the `count` highest values above -inf, in descending order; of equal values the lower index first."""
    if values.size > count:
        threshold = np.partition(values, -count)[-count]
        indices = np.flatnonzero(values >= threshold)
    else:
        indices = np.arange(values.size)
    order = indices[np.argsort(-values[indices], kind="stable")][:count]
    return [int(i) for i in order if values[i] > -np.inf]
