"""`Job`: settings of one process of `python -m benchmarks.gpu --measure`, and models that its participants share."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu.checks import SMALL, config_of
from benchmarks.gpu.weights import pool_of, pooled_params
from bloomref.dtypes import dtype_policy
from bloomref.errors import Unsupported
from bloomref.params import init_params
from bloomref.runtime.engine import Engine

CHECKED_LAYERS = 2
CHECKED_PROMPT, CHECKED_STEPS = 9, 3
"""The first step is captured and replayed, the others are only replayed."""
TOLERANCE = 0.05
"""Largest relative error of the logits, root mean square, of a participant that is timed."""
SECONDS = 10.0
"""Time after which no further run is started."""

Figures = Iterator[dict[str, Any]]
"""Figures of a participant, yielded one by one, so that the first ones are reported even if it does not finish."""


class Absent(Exception):
    """A participant cannot take part; the message is the reason."""


@dataclass(frozen=True)
class Job:
    """The arguments of `benchmarks.gpu.measure`, and the models built from them."""

    backend: str = "cupy"
    preset: str = "bloom_560m_multi"
    dtype: str = "bfloat16"
    rows: tuple[int, ...] = (1,)
    prompt: int = 32
    tokens: int = 64
    long: int = 2048
    context: int = 2048
    runs: int = 5
    torch: str = "cuda"

    @cached_property
    def config(self) -> Any:
        return config_of(self.preset)

    @cached_property
    def few(self) -> Any:
        """The config at full width, with few layers, so that the reference can run it."""
        return replace(self.config, num_layers=min(self.config.num_layers, CHECKED_LAYERS))

    @cached_property
    def policy(self) -> Any:
        return dtype_policy(self.dtype)

    @cached_property
    def pool(self) -> Any:
        return pool_of(self.config, self.policy.variable_dtype)

    @cached_property
    def params(self) -> Any:
        return pooled_params(self.config, self.pool)

    @cached_property
    def few_params(self) -> Any:
        return pooled_params(self.few, self.pool)

    @cached_property
    def device(self) -> Any:
        """The backend's device, after a tiny model was prepared, so that the driver and the libraries are loaded."""
        config = config_of(SMALL)
        try:
            prepared = Engine(init_params(config, 0), config, self.policy, self.backend).prepared
        except Unsupported as error:
            raise Absent(str(error)) from error
        if not hasattr(prepared, "device"):
            raise Absent(f"{self.backend} is no GPU")
        return prepared.device

    @cached_property
    def engine(self) -> Any:
        return self.engine_of(self.params, self.config)

    @cached_property
    def few_engine(self) -> Any:
        return self.engine_of(self.few_params, self.few)

    def engine_of(self, params: Any, config: Any) -> Any:
        return Engine(params, config, self.policy, self.backend)

    # --- the reference ---------------------------------------------------------------------------

    @cached_property
    def checked_ids(self) -> Any:
        """Token ids (largest number of rows, CHECKED_PROMPT + CHECKED_STEPS)."""
        return ids_of(self.config, max(self.rows), CHECKED_PROMPT + CHECKED_STEPS)

    @cached_property
    def expected(self) -> Any:
        """Logits (CHECKED_STEPS + 1, largest number of rows, V) of the reference in float32.

        They are those after the prompt and after each step.
        """
        reference = Engine(self.few_params.astype(np.dtype(np.float32)), self.few, dtype_policy("float32"))
        return logits(reference, self.checked_ids)


def logits(engine: Any, ids: Any) -> Any:
    """Return logits (steps + 1, rows, V) after the first CHECKED_PROMPT ids, and after each further id."""
    cache = engine.new_cache(*ids.shape)
    prompt = engine.read(cache, 0, ids[:, :CHECKED_PROMPT])
    steps = [engine.read(cache, t, ids[:, t : t + 1]) for t in range(CHECKED_PROMPT, ids.shape[1])]
    return np.stack([prompt, *steps])


def ids_of(config: Any, rows: int, length: int) -> Any:
    return np.random.default_rng(1).integers(4, config.vocabulary_size, (rows, length))


def close_enough(error: float) -> dict[str, Any]:
    """Return the figure of an error.

    Raises:
        Absent: The error exceeds TOLERANCE or is NaN.
    """
    if not error < TOLERANCE:
        raise Absent(f"logits off by {error:.1%} (root mean square): not timed")
    return {"logit_error_rms": error}


def median_seconds(
    run: Callable[[], Any], wait: Callable[[], Any], runs: int, before: Callable[[], Any] = lambda: None
) -> float:
    """Return the median time of a run, after two warm-up runs.

    Args:
        run: Queues the work.
        wait: Waits until all queued work is done.
        runs: Number of timed runs, fewer if they take longer than SECONDS.
        before: Called before each run, not timed.
    """
    seconds: list[float] = []
    for _ in range(2):
        before()
        run()
    while len(seconds) < runs and sum(seconds) < SECONDS:
        before()
        wait()
        began = perf_counter()
        run()
        wait()
        seconds.append(perf_counter() - began)
    return statistics.median(seconds)
