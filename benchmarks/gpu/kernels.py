"""Each kernel of a greedy step by itself, on the device: how long, how many bytes.

One step is run and every launch noted. All launches of a kernel, which go over the weights of other layers, then make a graph
of their own, and its time is divided by their number. So the weights of one layer are out of the caches when they come again,
where a model is large enough: `in_cache` tells which kernels' bytes may be there.
"""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accel.cupy_gpu.launches import Launch
from benchmarks.gpu.job import Absent, Figures, Job, ids_of, median_seconds
from benchmarks.gpu.paper import bytes_of, name_of
from bloomref.errors import Unsupported
from bloomref.runtime.backend import Choice, Step

LAUNCHES = 480
"""In a graph, about: enough that its own launch and the wait for it do not count."""
CACHED_BYTES = 1 << 27
"""Fewer, over and over again, may come from the chip's caches: about twice what an H200 has."""

Launched = list[tuple[Launch, tuple[Any, ...]]]


@dataclass(frozen=True)
class Timed:
    """A kernel of a step. `times`: its launches in a step; seconds and bytes are of one launch."""

    kernel: str
    times: int
    seconds: float
    bytes: int
    in_cache: bool


class Noting:
    """A device that notes what is launched on it."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.launched: Launched = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, launch: Launch, *arguments: Any) -> None:
        self.launched.append((launch, arguments))
        self._device.launch(launch, *arguments)


def kernels(job: Job, _: str) -> Figures:
    """For each number of rows that is chosen for on the device: every kernel, and the step as one graph."""
    prepared, given = job.engine.prepared, job.device
    for rows in job.rows:
        gc.collect()  # the cache of before, whose steps refer to each other
        noting = Noting(given)
        prepared.device, prepared.graphs = noting, False
        try:
            found, whole = _of_a_step(job, noting, rows)
        except Unsupported as error:
            raise Absent(f"{rows} rows: {error}") from error
        finally:
            prepared.device, prepared.graphs = given, True
        yield {"kernels": {str(rows): [asdict(timed) for timed in found]}, "kernels_together": {str(rows): whole}}


def _of_a_step(job: Job, noting: Noting, rows: int) -> tuple[list[Timed], float]:
    """Over a cache that is full but for the last column, which the step writes; and the seconds of the whole."""
    engine, last = job.engine, job.context - 1
    cache = engine.new_cache(rows, job.context)
    ids = engine.read(cache, 0, ids_of(job.config, rows, last)).argmax(axis=1)
    noting.launched.clear()
    facts = Step.at(last, np.ones((rows, job.context), bool))
    engine.prepared.tokens(ids, cache.blocks, facts, Choice(), 1)
    launched = list(noting.launched)
    (choosing,) = cache.blocks.choosing_steps.values()

    def as_before() -> None:
        """The position where it was: the choice of a token moves it on."""
        choosing.begin(np.zeros(rows, np.uint64), 0)
        choosing.place(ids, last, facts.key_is_real)

    def seconds(work: Launched) -> float:
        replay = noting.capture(lambda: _launch(job.device, work))
        return median_seconds(replay, lambda: noting.download(choosing.position), job.runs, as_before)

    return [_timed(group, seconds, job.context) for group in grouped(launched)], seconds(launched)


def grouped(launched: Launched) -> list[Launched]:
    """Those of the same launch over as many bytes together, in the order of the first ones."""
    groups: dict[Any, Launched] = {}
    for launch, arguments in launched:
        groups.setdefault((launch, bytes_of(launch, arguments)), []).append((launch, arguments))
    return list(groups.values())


def _timed(group: Launched, seconds: Callable[[Launched], float], room: int) -> Timed:
    """`room`: so often may a token be chosen before the record of them is full."""
    repeats = min(room, max(1, LAUNCHES // len(group)))
    size = bytes_of(*group[0])
    taken = seconds(group * repeats) / (repeats * len(group))
    return Timed(name_of(group[0][0]), len(group), taken, size, size * len(group) < CACHED_BYTES)


def _launch(device: Any, work: Launched) -> None:
    for launch, arguments in work:
        device.launch(launch, *arguments)
