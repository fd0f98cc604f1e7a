"""bloomref's own participants of `python -m benchmarks.gpu --measure`."""

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
    """The error of the logits, seconds of a step for each number of rows; of `bloomref`, of a long prompt, too."""
    for engine in (job.few_engine, job.engine):
        engine.prepared.graphs = name != "bloomref-eager"
    with starting(job.engine.prepared.device, early=name != "bloomref-late") as can:
        if name == "bloomref-late" and not can:
            raise Absent("no kernel starts early here: `bloomref` is this")
        yield close_enough(_error(job))
        on_the_device = name in ("bloomref", "bloomref-late")
        if on_the_device:
            _check_tokens(job)
        for rows in job.rows:
            yield {"step_seconds": {str(rows): _step_seconds(job, rows, on_the_device)}}
        if name == "bloomref":
            yield {"prefill_seconds": _prompt_seconds(job)}


def start(job: Job, _: str) -> Figures:
    """Seconds of loading, and from there to the first token's scores.

    It is in a process of its own, behind one that has read the same prompt, so kernels come from CuPy's folder on disk; the
    driver and the libraries are loaded before, the kernels are not.
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
    """Files in the folder where CuPy keeps what it has compiled."""
    folder = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy/kernel_cache"
    return len(list(Path(folder).glob("*.cubin")))


# --- checks ------------------------------------------------------------------------------------------------------


def _error(job: Job) -> float:
    """The largest over the numbers of rows, each of which may take kernels of its own."""
    return max(
        relative_error(logits(job.few_engine, job.checked_ids[:rows]), job.expected[:, :rows]) for rows in job.rows
    )


def _check_tokens(job: Job, count: int = 6) -> None:
    """Tokens chosen on the device are those that the host chooses from the same scores."""
    for rows in job.rows:
        try:
            found = chosen(job.few_engine, Choice(), count, rows)
        except Unsupported:  # so many rows are not chosen there
            continue
        if not np.array_equal(found, by_host(job.few_engine, count, rows)):
            raise Absent(f"{rows} rows: the host chooses other tokens from the same scores: not timed")


# --- times -------------------------------------------------------------------------------------------------------


def _step_seconds(job: Job, rows: int, on_the_device: bool) -> float:
    """A token of each row, greedily chosen."""
    engine, prompt, count = job.engine, job.prompt, job.tokens
    gc.collect()  # a cache's steps refer to each other: it is gone only now
    cache = engine.new_cache(rows, prompt + count)
    first = engine.read(cache, 0, ids_of(job.config, rows, prompt)).argmax(axis=1)

    def with_tokens() -> None:
        facts = Step.at(prompt, np.ones((rows, prompt + 1), bool))
        engine.prepared.tokens(first, cache.blocks, facts, Choice(), count)

    def with_scores() -> None:
        ids = first
        for t in range(count):
            ids = engine.read(cache, prompt + t, ids[:, None]).argmax(axis=1)

    try:
        return _median(with_tokens if on_the_device else with_scores, job) / count
    except Unsupported:  # so many rows are not chosen there
        return _median(with_scores, job) / count


def _prompt_seconds(job: Job) -> float:
    """One row of `long` positions, into a cache that is there."""
    cache, ids = job.engine.new_cache(1, job.long), ids_of(job.config, 1, job.long)
    return _median(lambda: job.engine.read(cache, 0, ids), job)


def _median(run: Any, job: Job) -> float:
    return median_seconds(run, lambda: None, job.runs)  # the result is on the host: the device has finished
