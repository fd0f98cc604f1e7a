"""Decoding by bloomref's engine, as generation does it: steps, and tokens that the backend or the host chooses."""

from dataclasses import replace

import numpy as np

from bloomref.generation import sampling
from bloomref.generation.options import GenerationOptions
from bloomref.generation.row_scores import Scores
from bloomref.runtime.backend import Choice
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.shapes import Array, Bool, Float, Int


def steps(
    engine: Engine, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], start: int, capacity: int
) -> Float[Array, "B _ V"]:
    """Logits after each position from `start` on, by one step each; `start` is at least 1."""
    cache = engine.new_cache(len(token_ids), capacity)
    engine.read(cache, 0, token_ids[:, :start], is_real[:, :start])
    times = range(start, token_ids.shape[1])
    logits = [engine.read(cache, t, token_ids[:, t : t + 1], is_real[:, t : t + 1]) for t in times]
    return np.stack(logits, axis=1)


def tokens(
    engine: Engine, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], choice: Choice, count: int
) -> Int[Array, "B N"]:
    """`count` tokens after each prompt: chosen by the backend if it makes this choice, else by the host."""
    last = token_ids.shape[1] - 1
    cache = engine.new_cache(len(token_ids), last + count)
    engine.run(cache, 0, token_ids[:, :last], is_real[:, :last])
    chosen = engine.choose(cache, last, token_ids[:, last], choice, count)
    return _chosen_by_host(engine, cache, token_ids[:, last:], choice, count) if chosen is None else chosen


def _chosen_by_host(
    engine: Engine, cache: EngineCache, token_ids: Int[Array, "B 1"], choice: Choice, count: int
) -> Int[Array, "B N"]:
    options = _options(choice)
    seeds = np.zeros(len(token_ids), np.uint64) if choice.seeds is None else choice.seeds
    start, chosen = cache.capacity - count, []
    for n in range(count):
        logits = engine.read(cache, start + n, token_ids)
        if choice.forbidden is not None:
            logits[:, choice.forbidden] = -np.inf
        rows = zip(logits, seeds, strict=True)
        ids = [sampling.choose(Scores(scores), options, int(seed), choice.drawn + n) for scores, seed in rows]
        token_ids = np.array(ids)[:, None]
        chosen.append(token_ids)
    return np.concatenate(chosen, axis=1)


def _options(choice: Choice) -> GenerationOptions:
    if choice.temperature is None:
        return GenerationOptions()
    sampled = GenerationOptions(do_sample=True, temperature=choice.temperature, top_k=choice.top_k)
    return sampled if choice.top_p == 1.0 else replace(sampled, top_p=choice.top_p)
