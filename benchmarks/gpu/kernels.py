"""Time and bytes of each kernel of a greedy step, on the device.

One step is run while its launches are recorded. Then all launches of a kernel, which use the weights of different
layers, are captured as one graph, whose time is divided by their number. In a large model, the weights of a layer are
no longer in the cache when they are read again; `in_cache` marks kernels whose bytes may still be there.
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
"""Approximate number of launches in a graph: enough that its own launch and the wait are negligible."""
CACHED_BYTES = 1 << 27
"""Fewer bytes, read repeatedly, may come from the caches: about twice the L2 cache of an H200."""

Launched = list[tuple[Launch, tuple[Any, ...]]]


@dataclass(frozen=True)
class Timed:
    """A kernel of a step. `times` is its number of launches in a step; seconds and bytes are per launch."""

    kernel: str
    times: int
    seconds: float
    bytes: int
    in_cache: bool


class RecordingDevice:
    """A device that records the launches of another."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.launched: Launched = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, launch: Launch, *arguments: Any) -> None:
        self.launched.append((launch, arguments))
        self._device.launch(launch, *arguments)


def kernels(job: Job, _: str) -> Figures:
    """Participant: times of every kernel of a step, and of the whole step as one graph, for each number of rows."""
    prepared, device = job.engine.prepared, job.device
    for rows in job.rows:
        gc.collect()  # the previous cache, whose steps form reference cycles
        recorder = RecordingDevice(device)
        prepared.device, prepared.graphs = recorder, False
        try:
            timed, whole = _time_step(job, recorder, rows)
        except Unsupported as error:
            raise Absent(f"{rows} rows: {error}") from error
        finally:
            prepared.device, prepared.graphs = device, True
        yield {"kernels": {str(rows): [asdict(one) for one in timed]}, "kernels_together": {str(rows): whole}}


def _time_step(job: Job, recorder: RecordingDevice, rows: int) -> tuple[list[Timed], float]:
    """Time the kernels of a step, and the whole step.

    The cache is full except for the column that the step writes.
    """
    engine, last = job.engine, job.context - 1
    cache = engine.new_cache(rows, job.context)
    ids = engine.read(cache, 0, ids_of(job.config, rows, last)).argmax(axis=1)
    recorder.launched.clear()
    step = Step.at(last, np.ones((rows, job.context), bool))
    engine.prepared.tokens(ids, cache.blocks, step, Choice(), 1)
    launched = list(recorder.launched)
    (choosing,) = cache.blocks.state().choosing_steps.values()

    def reset() -> None:
        """Reset the position, which the choice of a token increments."""
        choosing.begin(np.zeros(rows, np.uint64), 0)
        choosing.place(ids, last, step.key_is_real)

    def seconds(work: Launched) -> float:
        replay = recorder.capture(lambda: _launch(job.device, work))
        return median_seconds(replay, lambda: recorder.download(choosing.position), job.runs, reset)

    return [_timed(group, seconds, job.context) for group in grouped(launched)], seconds(launched)


def grouped(launched: Launched) -> list[Launched]:
    """Group launches of the same configuration and number of bytes, in order of first appearance."""
    groups: dict[Any, Launched] = {}
    for launch, arguments in launched:
        groups.setdefault((launch, bytes_of(launch, arguments)), []).append((launch, arguments))
    return list(groups.values())


def _timed(group: Launched, seconds: Callable[[Launched], float], room: int) -> Timed:
    """Time the launches of a group. `room` is the number of tokens that can be chosen before their record is full."""
    repeats = min(room, max(1, LAUNCHES // len(group)))
    size = bytes_of(*group[0])
    taken = seconds(group * repeats) / (repeats * len(group))
    return Timed(name_of(group[0][0]), len(group), taken, size, size * len(group) < CACHED_BYTES)


def _launch(device: Any, work: Launched) -> None:
    for launch, arguments in work:
        device.launch(launch, *arguments)
