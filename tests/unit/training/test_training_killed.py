"""`kill -9` at random moments of training: the last checkpoint is whole, and continues to the same bits."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import training_victim

from bloomref.training import training_state

VICTIM = Path(training_victim.__file__)


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, str(VICTIM), str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def reached(folder: Path) -> int:
    """Steps in the newest checkpoint."""
    found = training_state.latest(folder)
    return 0 if found is None else int(found.name.rpartition("-")[2])


def killed(folder: Path, steps: int, seconds: float) -> bool:
    """Kill a run some seconds after its checkpoint of the given step; return True if it was still running."""
    process = start(folder)
    while reached(folder) < steps and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.clause("TRN-13", "TRN-14")
def test_20_random_kills(tmp_path: Path) -> None:
    """The moment is counted in steps, not in seconds, so that it does not depend on the load of the machine."""
    truth, steps = training_victim.run(None), training_victim.SETTINGS["steps"]
    rng, places = np.random.default_rng(), []
    for number in range(20):
        folder = tmp_path / str(number)
        alive = killed(folder, int(rng.integers(steps - 5)), 0.02 * rng.random())
        places.append((alive, reached(folder)))
        if places[-1][1]:
            training_state.load(training_state.latest(folder))
        assert training_victim.run(folder) == truth, places
        assert [path.name for path in folder.iterdir()] == [f"checkpoint-{steps:08d}"]
    assert sum(alive for alive, _ in places) >= 15, places
    assert len({place for _, place in places}) >= 5, places


@pytest.mark.slow
@pytest.mark.clause("TRN-13", "TRN-14")
def test_killed_again_and_again_until_it_ends(tmp_path: Path) -> None:
    truth = training_victim.run(None)
    for steps in (3, 9):
        assert killed(tmp_path, steps, 0.0)
    assert training_victim.run(tmp_path) == truth
