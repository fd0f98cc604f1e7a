"""What a figure must carry to mean something: the machine, its load, the threads and the versions."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "bloomref",
    "numpy",
    "ml_dtypes",
    "safetensors",
    "torch",
    "transformers",
    "keras",
    "keras-hub",
    "jax",
    "numba",
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load average, Python and package versions, thread variables, BLAS libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_NUM_THREADS")
            if name in os.environ
        },
        "blas": blas_info(),
    }


def blas_info() -> list[dict[str, Any]]:
    """threadpoolctl's view of the libraries loaded in this process, without their file paths."""
    import numpy  # noqa: F401  # its BLAS must be loaded to be seen
    from threadpoolctl import threadpool_info

    return [{key: value for key, value in library.items() if key != "filepath"} for library in threadpool_info()]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command_line() -> str:
    """The command that is running, as one would type it."""
    module = sys.modules["__main__"].__spec__
    name = module.name if module else sys.argv[0]
    return " ".join(["python", "-m", name, *sys.argv[1:]])
