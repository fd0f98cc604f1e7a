"""The shape annotations are executed by every test of a whole run, as the hook of conftest does here."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
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


def test_a_wrong_shape_is_found() -> None:
    assert run("-c", WRONG_CALL).returncode == 0  # NumPy broadcasts it
    assert "jaxtyping.TypeCheckError" in run("-c", HOOK + WRONG_CALL).stderr
