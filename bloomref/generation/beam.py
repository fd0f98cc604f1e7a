"""Beam search as in transformers; the result of a prompt does not depend on the batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.generation.options import GenerationOptions
from bloomref.generation.row_scores import Scores
from bloomref.generation.stopping import Stopping
from bloomref.generation.task import Row, Task


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
    live, sums = beams, task.sums()
    places = list(range(len(beams)))
    """The decoder's sequence of each running hypothesis."""
    while live:
        logits = decoder.logits()
        parents: list[int] = []
        offset = 0
        for beam in live:
            own = places[offset : offset + len(beam.running)]
            scores = [
                process(Scores.as_log_probabilities(logits[place], sums), beam.history(h), beam.row.prompt_length)
                for place, h in zip(own, beam.running, strict=True)
            ]
            parents += [own[parent] for parent in beam.step(scores)]
            offset += len(own)
        live = [beam for beam in live if beam.running]
        if live:
            places = places_of(parents)
            last_ids = [h.new_ids[-1] for beam in live for h in beam.running]
            by_place = sorted(zip(places, parents, last_ids, strict=True))
            decoder.advance([parent for _, parent, _ in by_place], [token_id for *_, token_id in by_place])
    count = task.options.num_return_sequences
    for beam in beams:
        for rank, hypothesis in enumerate(beam.best(count)):
            yield from ((beam.row.index * count + rank, token_id) for token_id in hypothesis.new_ids)


def places_of(parents: Sequence[int]) -> list[int]:
    """A place below their number for every child: its parent's where that is free, so that few sequences are copied."""
    free, places = set(range(len(parents))), dict[int, int]()
    for child, parent in enumerate(parents):
        if parent in free:
            free.remove(parent)
            places[child] = parent
    left = iter(sorted(free))
    return [places[child] if child in places else next(left) for child in range(len(parents))]


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

    def step(self, log_probabilities: Sequence[Scores]) -> list[int]:
        """Extend the running hypotheses by one token; returns the index of each new one's parent among the old ones.

        Args:
            log_probabilities: of the tokens after each running hypothesis.
        """
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

    def _best_extensions(self, log_probabilities: Sequence[Scores]) -> list[tuple[int, Hypothesis]]:
        """(parent, extension) pairs of the highest totals; of equal ones the earlier parent, then the lower id."""
        best = [
            scores.highest(self._width, abs(hypothesis.total))
            for scores, hypothesis in zip(log_probabilities, self.running, strict=True)
        ]
        parents = np.repeat(np.arange(len(best)), [ids.size for ids, _ in best])
        ids = np.concatenate([ids for ids, _ in best])
        totals = np.concatenate([values + h.total for (_, values), h in zip(best, self.running, strict=True)])
        extensions = []
        for i in np.argsort(-totals, kind="stable")[: self._width]:
            parent = int(parents[i])
            extended = (*self.running[parent].new_ids, int(ids[i]))
            extensions.append((parent, Hypothesis(extended, float(totals[i]))))
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
