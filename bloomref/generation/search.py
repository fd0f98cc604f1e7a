"""Generation: the choice of the strategy, and the two that choose token by token (greedy and sampling)."""

from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from bloomref.generation.beam import beam_search
from bloomref.generation.contrastive import contrastive_search
from bloomref.generation.decoder import Decoder
from bloomref.generation.sampling import argmax, draw, generators, row_seeds, truncate
from bloomref.generation.stopping import Stopping
from bloomref.generation.task import Row, Task
from bloomref.runtime.backend import Choice

AHEAD = 8
"""Tokens that a backend chooses before the host looks at them: what lies behind a row's end is lost."""


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
    is_drawn, seed = task.options.strategy == "sample", task.options.seed
    seed = None if seed is None else int(seed)
    rngs = generators(seed, len(rows)) if is_drawn else None
    by_backend = choice(task)
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
        rows = _keep(rows, kept, decoder)
        if by_backend is not None:
            rows = yield from _chosen_by_backend(rows, decoder, task.stopping, by_backend)
            by_backend = None
        if rows:
            decoder.advance(range(len(rows)), [row.history[-1] for row in rows])


def _chosen_by_backend(
    rows: list[Row], decoder: Decoder, stopping: Stopping, how: Choice
) -> Generator[tuple[int, int], None, list[Row]]:
    """The tokens that follow, AHEAD at a time; the rows that are left where the backend does not choose so."""
    drawn = 0
    while rows:
        count = min(AHEAD, max(row.budget for row in rows))
        seeds = None if how.seeds is None else how.seeds[[row.index for row in rows]]
        chosen = decoder.choose([row.history[-1] for row in rows], replace(how, seeds=seeds, drawn=drawn), count)
        if chosen is None:
            break
        for row, token_ids in zip(rows, chosen.tolist(), strict=True):
            while token_ids and not row.ended:
                row.append(token_ids.pop(0), stopping)
                yield row.index, row.history[-1]
        rows = _keep(rows, [i for i, row in enumerate(rows) if not row.ended], decoder)
        drawn += count
    return rows


def _keep(rows: list[Row], kept: list[int], decoder: Decoder) -> list[Row]:
    """These of the rows, here and in the decoder."""
    if kept:
        decoder.select(kept)
    return [rows[i] for i in kept]


def choice(task: Task) -> Choice | None:
    """What the options ask for where a backend can choose by itself; None where only the host sees enough to choose."""
    options = task.options
    if (
        options.logit_bias
        or options.repetition_penalty != 1.0
        or options.no_repeat_ngram_size
        or options.min_p is not None
    ):
        return None
    forbidden = task.forbidden if task.forbidden.any() else None
    if options.strategy == "greedy":
        return Choice(forbidden=forbidden)
    return Choice(
        1.0 if options.temperature is None else float(options.temperature),
        options.top_k,
        1.0 if options.top_p is None else float(options.top_p),
        forbidden,
        row_seeds(None if options.seed is None else int(options.seed), len(task.prompts)),
    )
