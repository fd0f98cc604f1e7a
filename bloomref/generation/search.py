"""Dispatch to a decoding strategy, and the two strategies that choose token by token: greedy search and sampling."""

from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from bloomref.generation.beam import beam_search
from bloomref.generation.contrastive import contrastive_search
from bloomref.generation.decoder import Decoder
from bloomref.generation.row_scores import Scores
from bloomref.generation.sampling import choose
from bloomref.generation.speculation import Observe, speculative_search
from bloomref.generation.stopping import Stopping
from bloomref.generation.task import Row, Task
from bloomref.runtime.backend import Choice
from bloomref.shapes import Array, Float, Int

TOKENS_PER_DEVICE_CALL = 8
"""Number of tokens that a backend chooses in one call; tokens past a stop are discarded."""


def generate(task: Task) -> list[list[int]]:
    """New token ids, including the stop token, of every result: `num_return_sequences` of each prompt, side by side."""
    task.check_memory()
    if task.options.best_of is not None:
        return best_candidates(task)
    new_ids: list[list[int]] = [[] for _ in range(len(task.prompts) * task.options.num_return_sequences)]
    for row, token_id in tokens(task) if task.prompts else ():
        new_ids[row].append(token_id)
    return new_ids


def best_candidates(task: Task) -> list[list[int]]:
    """The `num_return_sequences` of each prompt's `best_of` draws with the highest mean log-probability, best first.

    Log-probabilities are the model's, before processors and sampling; of equal means the earlier draw wins (GEN-12).
    """
    draws: list[list[int]] = [[] for _ in range(len(task.prompts) * task.options.sequences)]
    totals = np.zeros(len(draws))

    def observe(row: Row, token_id: int, logits: Float[Array, " V"]) -> None:
        totals[row.index] += Scores.as_log_probabilities(logits, task.sums()).of(np.array([token_id]))[0]

    for row, token_id in next_token_search(task, observe) if task.prompts else ():
        draws[row].append(token_id)
    means = [total / len(draw) if draw else -np.inf for total, draw in zip(totals, draws, strict=True)]
    best: list[list[int]] = []
    for first in range(0, len(draws), task.options.sequences):
        candidates = range(first, first + task.options.sequences)
        ranked = sorted(candidates, key=lambda row: -means[row])
        best += [draws[row] for row in ranked[: task.options.num_return_sequences]]
    return best


def tokens(task: Task) -> Iterator[tuple[int, int]]:
    """(row, new token id), each as soon as it is final and in the order of its row; beam search yields at its end."""
    task.check_memory()
    strategies = {
        "greedy": next_token_search,
        "sample": next_token_search,
        "beam": beam_search,
        "contrastive": contrastive_search,
    }
    return strategies[task.options.strategy](task)


def next_token_search(task: Task, observe: Observe | None = None) -> Iterator[tuple[int, int]]:
    """Greedy search or sampling. A row ends if all its tokens are forbidden.

    Args:
        observe: called with each new token and the logits that it was chosen from; then no backend chooses tokens.
    """
    if task.draft is not None:
        yield from speculative_search(task, observe)
        return
    rows, decoder, process = task.rows(), task.decoder(), task.processors()
    seeds, drawn, sums = task.seeds(), 0, task.sums()
    device_choice = choice(task, seeds) if observe is None else None
    while rows:
        logits = decoder.logits()
        running: list[int] = []
        for i, row in enumerate(rows):
            plain = logits[i].copy() if observe is not None and process.active else logits[i]
            scores = process(Scores(plain), row.history, row.prompt_length)
            token_id = choose(scores, task.options, int(seeds[row.index]), drawn, sums)
            if token_id is None:
                continue
            if observe is not None:
                observe(row, token_id, logits[i])
            row.append(token_id, task.stopping)
            yield row.index, token_id
            if not row.ended:
                running.append(i)
        rows, drawn = _select(rows, running, decoder), drawn + 1
        if device_choice is not None:
            rows, drawn = yield from _chosen_by_backend(rows, decoder, task.stopping, device_choice)
            device_choice = None
        if rows:
            decoder.advance(range(len(rows)), [row.history[-1] for row in rows])


def _chosen_by_backend(
    rows: list[Row], decoder: Decoder, stopping: Stopping, device_choice: Choice
) -> Generator[tuple[int, int], None, tuple[list[Row], int]]:
    """Tokens that the backend chooses, after the first of each row.

    Returns:
        The rows that still run when the backend cannot make this choice, and the number of tokens that each has drawn.
    """
    drawn = 1
    while rows:
        count = min(TOKENS_PER_DEVICE_CALL, max(row.budget for row in rows))
        seeds = None if device_choice.seeds is None else device_choice.seeds[[row.index for row in rows]]
        last_ids = [row.history[-1] for row in rows]
        chosen = decoder.choose(last_ids, replace(device_choice, seeds=seeds, drawn=drawn), count)
        if chosen is None:
            break
        for row, token_ids in zip(rows, chosen.tolist(), strict=True):
            while token_ids and not row.ended:
                row.append(token_ids.pop(0), stopping)
                yield row.index, row.history[-1]
        rows = _select(rows, [i for i, row in enumerate(rows) if not row.ended], decoder)
        drawn += count
    return rows, drawn


def _select(rows: list[Row], indices: list[int], decoder: Decoder) -> list[Row]:
    """The rows at these indices; the decoder drops the sequences of the others."""
    if indices:
        decoder.select(indices)
    return [rows[i] for i in indices]


def choice(task: Task, seeds: Int[Array, " B"]) -> Choice | None:
    """The task's options as a backend's `Choice`; None for options that only the host implements.

    Args:
        seeds: one of each sequence, for its draws.
    """
    options = task.options
    if task.processors().active or options.min_p is not None or options.typical_p is not None:
        return None
    forbidden = task.forbidden if task.forbidden.any() else None
    if options.strategy == "greedy":
        return Choice(forbidden=forbidden)
    return Choice(
        temperature=1.0 if options.temperature is None else float(options.temperature),
        top_k=options.top_k,
        top_p=1.0 if options.top_p is None else float(options.top_p),
        forbidden=forbidden,
        seeds=seeds,
    )
