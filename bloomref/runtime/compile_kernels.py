"""Compile a backend's kernels: `python -m bloomref.runtime.compile_kernels NAME POLICY FILE`, started by `first_start`.

The file stands for this process. It is removed once the kernels are compiled.
"""

import os
import sys
from pathlib import Path

from bloomref.dtypes import dtype_policy
from bloomref.runtime import registry
from bloomref.runtime.backend import SupportsCompilation

LOWEST_PRIORITY = 19


def main(name: str, policy_name: str, running: str) -> None:
    """Compile the kernels, unless another process has done so."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(LOWEST_PRIORITY)
    backend, policy = registry.load(name), dtype_policy(policy_name)
    if isinstance(backend, SupportsCompilation) and not backend.is_compiled(policy):
        backend.compile(policy)
    Path(running).unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
