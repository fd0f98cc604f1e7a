"""Programmatic dependent launch: a kernel reads nothing before it waits, and every thread waits.

In a replay, the emulated device lets a kernel, at random, run as far as it can before the preceding one has begun.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest
from emulated_device import EmulatedDevice
from emulator import EmulationError

from accel.cupy_gpu import launches, sources
from accel.cupy_gpu.launches import Launch

SEEDS = range(1, 7)
WIDTH = 64
WAIT = "    start_early();\n    const T* const row = x +"


def two_norms(device: EmulatedDevice) -> bytes:
    """Return the bits of LN(LN(x)), of two kernels that are launched one by one, then replayed with other memory."""
    x = device.upload(np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32))
    weight, results = device.upload(np.full(WIDTH, 1.5, np.float32)), []
    for run in (lambda work: work(), lambda work: device.capture(work)()):
        once, twice = (device.empty(x.shape, x.dtype) for _ in range(2))
        launch = launches.layer_norm("float32", len(x))

        def work(once: object = once, twice: object = twice, launch: Launch = launch) -> None:
            device.launch(launch, x, weight, weight, 1e-5, once, WIDTH)
            device.launch(launch, once, weight, weight, 1e-5, twice, WIDTH)

        run(work)
        results.append(twice.tobytes())
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replay_has_the_bits_of_launches_one_by_one(emulator: type[EmulatedDevice], seed: int) -> None:
    device = emulator(seed=seed)
    assert np.isfinite(np.frombuffer(two_norms(device), np.float32)).all()


def late(text: str) -> str:
    """Move the wait after the first read."""
    return re.sub(
        r"(const T\* const row = x \+[^;]*;\n    Acc<T> mean\[1\], inverse\[1\];\n    moments[^;]*;\n)",
        r"\1    start_early();\n",
        text.replace(WAIT, WAIT.split("\n")[1]),
    )


FAULTS = {
    "a kernel that never waits": lambda text: text.replace(WAIT, WAIT.split("\n")[1]),
    "a kernel that reads before it waits": late,
    "a thread that does not wait": lambda text: text.replace(WAIT, f"    if (threadIdx.x == 7) return;\n{WAIT}"),
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS)
def test_a_known_mistake_is_detected(emulator: type[EmulatedDevice], plant: Callable[[str], str]) -> None:
    assert plant(sources.source("rows")) != sources.source("rows")

    def try_all() -> None:
        for seed in SEEDS:
            two_norms(emulator(seed=seed, change=plant))

    with pytest.raises((AssertionError, EmulationError)):
        try_all()
