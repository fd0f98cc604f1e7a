"""The shape annotations are executed: by every test of a whole run, and by the tests below in the fast run, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/unit/vocabulary/test_alibi.py",
    "tests/unit/reference/test_ops.py",
    "tests/unit/reference/test_ops_vjp.py",
    "tests/unit/reference/test_cache.py::test_token_by_token_in_every_dtype",
    "tests/unit/reference/test_trace.py::test_recorded_values_fit_together",
    "tests/unit/reference/test_vjp.py::test_a_tied_head_sums_both_uses",
    "tests/unit/runtime/test_engine.py::test_batches_and_sequences_may_be_empty",
)
"""A few seconds, with calls of every function that has annotated arrays."""

HOOK = """
import sys
sys.path[:0] = ["tests"]
from conftest import SHAPED, install_import_hook
install_import_hook(SHAPED, "beartype.beartype")
"""
WRONG_CALL = """
import numpy as np
from bloomref.reference.ops import layer_norm
layer_norm(np.ones((2, 3)), np.ones(1), np.ones(1), 1e-5)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_annotations_hold_in_a_few_tests(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("markexpr") != "not slow":
        pytest.skip("every test of this run executes the annotations")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "--hypothesis-profile=fast", *TESTS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout.splitlines()[-1]


def test_a_wrong_shape_is_found() -> None:
    assert run("-c", WRONG_CALL).returncode == 0  # NumPy broadcasts it
    assert "jaxtyping.TypeCheckError" in run("-c", HOOK + WRONG_CALL).stderr
