"""Generation: the choice of the strategy, and the two that choose token by token (greedy and sampling)."""

from collections.abc import Iterator

import numpy as np

from bloomref.runtime.beam import beam_search
from bloomref.runtime.contrastive import contrastive_search
from bloomref.runtime.sampling import argmax, draw, generators, truncate
from bloomref.runtime.task import Task


def generate(task: Task) -> list[list[int]]:
    """The new tokens of every prompt, the one that ended it included."""
    new_ids: list[list[int]] = [[] for _ in task.prompts]
    for row, token_id in tokens(task):
        new_ids[row].append(token_id)
    return new_ids


def tokens(task: Task) -> Iterator[tuple[int, int]]:
    """(row, token) as soon as each is certain; a row's tokens come in order. Beam search is certain at its end only."""
    strategies = {
        "greedy": next_token_search,
        "sample": next_token_search,
        "beam": beam_search,
        "contrastive": contrastive_search,
    }
    return strategies[task.options.strategy](task)


def next_token_search(task: Task) -> Iterator[tuple[int, int]]:
    """Greedy search, or sampling. A row whose every token is forbidden ends."""
    rows, decoder, process = task.rows(), task.decoder(), task.processors()
    seed = task.options.seed
    rngs = generators(None if seed is None else int(seed), len(rows)) if task.options.strategy == "sample" else None
    while rows:
        logits = decoder.logits()
        kept: list[int] = []
        for i, row in enumerate(rows):
            scores = process(logits[i], row.history)
            if scores.max() == -np.inf:
                continue
            token_id = argmax(scores) if rngs is None else draw(truncate(scores, task.options), rngs[row.index])
            row.append(token_id, task.stopping)
            yield row.index, token_id
            if not row.ended:
                kept.append(i)
        rows = [rows[i] for i in kept]
        if rows:
            decoder.advance(kept, [row.history[-1] for row in rows])
