"""Python processes with another environment: variables of Numba and of this backend are read once, at import."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `root`, whose packages come first on the path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=inherited | {"PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def source_root() -> Path:
    """Folder whose `accel` this process imports."""
    import accel

    return Path(accel.__file__).parents[1]


def copy_packages(target: Path) -> Path:
    """Copy the packages, to be modified."""
    for package in ("accel", "bloomref"):
        shutil.copytree(
            source_root() / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
        )
    return target
