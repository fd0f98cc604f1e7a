"""Contrastive search (arXiv:2202.06417): prefers likely tokens whose hidden state is unlike all earlier ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.generation.sampling import softmax
from bloomref.generation.task import Task
from bloomref.shapes import Array, Bool, Float, Int


def contrastive_search(task: Task) -> Iterator[tuple[int, int]]:
    """At each step, the candidate that maximises (1 - alpha) p(token) - alpha max cosine(its state, earlier states).

    Candidates are the `top_k` likeliest tokens. States are final hidden states of real tokens.
    """
    rows, decoder, process = task.rows(), task.decoder(), task.processors()
    alpha, k = float(task.options.penalty_alpha or 0.0), int(task.options.top_k or 1)
    context = Context(_unit(decoder.take_prompt_hidden()), decoder.prompt_is_real)
    while rows:
        logits = decoder.logits()
        owners, ids, probabilities = candidates(
            [process(logits[i], row.history, row.prompt_length) for i, row in enumerate(rows)], k
        )
        if not owners.size:
            return
        decoder.advance([int(i) for i in owners], [int(i) for i in ids])
        scores = (1.0 - alpha) * probabilities - alpha * context.similarity(owners, decoder.last_hidden)
        running = []
        for best in best_of_each(owners, scores):
            row = rows[owners[best]]
            row.append(int(ids[best]), task.stopping)
            yield row.index, row.history[-1]
            if not row.ended:
                running.append(best)
        rows = [rows[owners[best]] for best in running]
        decoder.select(running)
        context = context.extended(owners[running], decoder.last_hidden)


@dataclass(frozen=True, eq=False)
class Context:
    """Unit vectors of the hidden states so far; `is_real` is False at padding."""

    directions: Float[Array, "B T D"]
    is_real: Bool[Array, "B T"]

    def similarity(self, owners: Int[Array, " N"], hidden: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Largest cosine similarity between each candidate's state and the states of its sequence."""
        cosine = np.einsum("NTD,ND->NT", self.directions[owners], _unit(hidden))
        return np.where(self.is_real[owners], cosine, -1.0).max(axis=1)

    def extended(self, rows: Int[Array, " N"], hidden: Float[Array, "N D"]) -> "Context":
        """The context of these rows, with one more real state appended to each."""
        directions = np.concatenate([self.directions[rows], _unit(hidden)[:, None]], axis=1)
        return Context(directions, np.pad(self.is_real[rows], ((0, 0), (0, 1)), constant_values=True))


def candidates(
    scores: Sequence[Float[Array, " V"]], k: int
) -> tuple[Int[Array, " N"], Int[Array, " N"], Float[Array, " N"]]:
    """Row, id and probability of the k likeliest allowed tokens of every row, sorted by row and id.

    Of equal scores at the boundary the lowest ids are taken. A row whose tokens are all forbidden has no candidates.
    """
    entries = []
    for row, values in enumerate(scores):
        if values.max() == -np.inf:
            continue
        probabilities = softmax(values)
        likeliest = np.argsort(-values, kind="stable")[:k]
        entries += [(row, int(i), probabilities[i]) for i in np.sort(likeliest[values[likeliest] > -np.inf])]
    table = np.array(entries, np.float64).reshape(-1, 3)
    return table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]


def best_of_each(owners: Int[Array, " N"], scores: Float[Array, " N"]) -> list[int]:
    """Index of the highest score of each owner; the first of equal ones."""
    indices = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
    return [int(group[np.argmax(scores[group])]) for group in indices]


def _unit(hidden: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Vectors scaled to length 1, in float64; a zero vector stays zero."""
    wide = hidden.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
