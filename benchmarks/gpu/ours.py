"""Participants of `python -m benchmarks.gpu --measure` that run bloomref."""

import gc
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu.checks import by_host, chosen, starting
from benchmarks.gpu.job import Absent, Figures, Job, close_enough, ids_of, logits, median_seconds
from benchmarks.model import relative_error
from bloomref.errors import Unsupported
from bloomref.params import count_params
from bloomref.runtime.backend import Choice, Step


def bloomref(job: Job, name: str) -> Figures:
    """Participant: error of the logits and time of a step for each number of rows.

    `bloomref` also times a long prompt.
    """
    for engine in (job.few_engine, job.engine):
        engine.prepared.graphs = name != "bloomref-eager"
    with starting(job.engine.prepared.device, early=name != "bloomref-late") as can:
        if name == "bloomref-late" and not can:
            raise Absent("the device has no programmatic dependent launch: `bloomref` runs without it")
        yield close_enough(_error(job))
        chooses_on_device = name in ("bloomref", "bloomref-late")
        if chooses_on_device:
            _check_tokens(job)
        for rows in job.rows:
            yield {"step_seconds": {str(rows): _step_seconds(job, rows, chooses_on_device)}}
        if name == "bloomref":
            yield {"prefill_seconds": _prompt_seconds(job)}


def start(job: Job, _: str) -> Figures:
    """Participant: time of loading the weights, and from then to the logits of the first token.

    It runs in a separate process, after one that has read the same prompt, so kernels come from CuPy's cache on disk.
    The driver and the libraries are already loaded, the kernels are not.
    """
    params, config, _device = job.params, job.config, job.device
    began = perf_counter()
    engine = job.engine_of(params, config)
    yield {
        "load_seconds": perf_counter() - began,
        "weight_bytes": count_params(config) * job.policy.compute_dtype.itemsize,
    }
    ids, before = ids_of(config, 1, job.prompt), compiled_kernels()
    began = perf_counter()
    engine.read(engine.new_cache(1, job.prompt + job.tokens), 0, ids).argmax(axis=1)
    yield {"first_token_seconds": perf_counter() - began, "first_token_compiled": compiled_kernels() - before}


def compiled_kernels() -> int:
    """Return the number of kernels in CuPy's cache on disk."""
    folder = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy/kernel_cache"
    return len(list(Path(folder).glob("*.cubin")))


# --- checks ------------------------------------------------------------------------------------------------------


def _error(job: Job) -> float:
    """Return the largest error over the numbers of rows, which may use different kernels."""
    return max(
        relative_error(logits(job.few_engine, job.checked_ids[:rows]), job.expected[:, :rows]) for rows in job.rows
    )


def _check_tokens(job: Job, count: int = 6) -> None:
    """Check that the device chooses the tokens that the host chooses from the same logits.

    Raises:
        Absent: A token differs.
    """
    for rows in job.rows:
        try:
            tokens = chosen(job.few_engine, Choice(), count, rows)
        except Unsupported:  # the device does not choose tokens for this many rows
            continue
        if not np.array_equal(tokens, by_host(job.few_engine, count, rows)):
            raise Absent(f"{rows} rows: the host chooses other tokens from the same scores: not timed")


# --- times -------------------------------------------------------------------------------------------------------


def _step_seconds(job: Job, rows: int, chooses_on_device: bool) -> float:
    """Return the time of a greedy step."""
    engine, prompt, count = job.engine, job.prompt, job.tokens
    gc.collect()  # frees the previous cache, whose steps form reference cycles
    cache = engine.new_cache(rows, prompt + count)
    first = engine.read(cache, 0, ids_of(job.config, rows, prompt)).argmax(axis=1)

    def with_tokens() -> None:
        step = Step.at(prompt, np.ones((rows, prompt + 1), bool))
        engine.prepared.tokens(first, cache.blocks, step, Choice(), count)

    def with_scores() -> None:
        ids = first
        for t in range(count):
            ids = engine.read(cache, prompt + t, ids[:, None]).argmax(axis=1)

    try:
        return _median(with_tokens if chooses_on_device else with_scores, job) / count
    except Unsupported:  # the device does not choose tokens for this many rows
        return _median(with_scores, job) / count


def _prompt_seconds(job: Job) -> float:
    """Return the time to read one row of `long` positions into an existing cache."""
    cache, ids = job.engine.new_cache(1, job.long), ids_of(job.config, 1, job.long)
    return _median(lambda: job.engine.read(cache, 0, ids), job)


def _median(run: Any, job: Job) -> float:
    return median_seconds(run, lambda: None, job.runs)  # no wait: the result is on the host
