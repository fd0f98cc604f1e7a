"""Contrastive search (arXiv:2202.06417): prefers likely tokens whose hidden state is unlike all earlier ones."""

from collections.abc import Iterator
from itertools import compress

import numpy as np

from bloomref.generation.partial_selection import Sums
from bloomref.generation.row_scores import Scores
from bloomref.generation.task import Task
from bloomref.shapes import Array, Float, Int


def contrastive_search(task: Task) -> Iterator[tuple[int, int]]:
    """At each step, the candidate that maximises (1 - alpha) p(token) - alpha max cosine(its state, earlier states).

    Candidates are the `top_k` likeliest tokens. States are final hidden states of real tokens. The decoder has k copies
    of every row. They differ in the last position alone, so only that is copied from the best one to the others.
    """
    rows, decoder, process, sums = task.rows(), task.decoder(), task.processors(), task.sums()
    alpha, k = float(task.options.penalty_alpha or 0.0), int(task.options.top_k or 1)
    prompts = zip(decoder.take_prompt_hidden(), decoder.prompt_is_real, rows, strict=True)
    contexts = [Context(hidden[is_real], row.budget) for hidden, is_real, row in prompts]
    sources, count = list(range(len(rows))), 0
    while rows:
        logits = decoder.logits()
        scores = [
            process(Scores(logits[i]), row.history, row.prompt_length) for i, row in zip(sources, rows, strict=True)
        ]
        entries = [candidates(values, k, sums) for values in scores]
        possible = [ids.size > 0 for ids, _ in entries]
        rows, contexts = list(compress(rows, possible)), list(compress(contexts, possible))
        entries, sources = list(compress(entries, possible)), list(compress(sources, possible))
        if not rows:
            return
        decoder.arrange([i for i in sources for _ in range(k)], is_same_before=len(rows) == count)
        decoder.advance(range(len(rows) * k), [int(ids[min(j, ids.size - 1)]) for ids, _ in entries for j in range(k)])
        count, sources = len(rows), []
        for i, (row, context, (ids, probabilities)) in enumerate(zip(rows, contexts, entries, strict=True)):
            states = decoder.last_hidden[i * k : i * k + ids.size]
            best = int(np.argmax((1.0 - alpha) * probabilities - alpha * context.similarity(states)))
            context.append(states[best])
            row.append(int(ids[best]), task.stopping)
            sources.append(i * k + best)
            yield row.index, row.history[-1]
        running = [not row.ended for row in rows]
        contexts, sources = list(compress(contexts, running)), list(compress(sources, running))
        rows = list(compress(rows, running))


class Context:
    """Unit vectors of the hidden states of one sequence so far.

    Args:
        hidden: (T, D) states of the prompt's real tokens.
        budget: number of states that may be appended.
    """

    def __init__(self, hidden: Float[Array, "T D"], budget: int) -> None:
        self._length = len(hidden)
        self._directions = np.empty((self._length + budget, hidden.shape[1]))
        self._directions[: self._length] = _unit(hidden)

    def similarity(self, hidden: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Largest cosine similarity between each candidate's state and the states so far."""
        return (_unit(hidden) @ self._directions[: self._length].T).max(axis=1)

    def append(self, hidden: Float[Array, " D"]) -> None:
        self._directions[self._length] = _unit(hidden)
        self._length += 1


def candidates(scores: Scores, k: int, sums: Sums) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Ids, ascending, and probabilities of the k likeliest allowed tokens; none if all are forbidden.

    Of equal scores at the boundary the lowest ids are taken.
    """
    ids, highest = scores.highest(k)
    likeliest = np.sort(np.argsort(-highest, kind="stable")[:k])
    if not likeliest.size:
        return ids, highest
    total = scores.block_sums(1.0, sums).sum()
    return ids[likeliest], np.exp(highest[likeliest] - scores.largest()) / total


def _unit(hidden: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Vectors scaled to length 1, in float64; a zero vector stays zero."""
    wide = hidden.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
