"""Context of a figure: the machine, its load, threads and package versions."""

import os
import platform
import re
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
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "CT2_USE_MKL",
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load average, Python and package versions, thread variables, BLAS libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "blas": blas_info(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of the installed packages among these."""
    return {name: installed for name in packages if (installed := _version(name))}


def blas_info() -> list[dict[str, Any]]:
    """BLAS and threading libraries of this process, as threadpoolctl reports them, without file paths."""
    import numpy  # noqa: F401  # threadpoolctl reports loaded libraries only
    from threadpoolctl import threadpool_info

    return [{key: value for key, value in library.items() if key != "filepath"} for library in threadpool_info()]


def memory() -> dict[str, int]:
    """Memory of this process in MB: peak, now private, now mapped from files. Empty except on Linux."""
    fields = {"VmHWM": "peak_mb", "RssAnon": "own_mb", "RssFile": "file_mb"}
    status = Path("/proc/self/status")
    lines = (line.split() for line in status.read_text().splitlines()) if status.exists() else ()
    return {fields[line[0][:-1]]: round(int(line[1]) * 1024 / 1e6) for line in lines if line and line[0][:-1] in fields}


def command_line() -> str:
    """The running command as a user would type it, without folders of this machine."""
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else sys.argv[0]
    return " ".join(["python", "-m", name, *(without_folders(word) for word in sys.argv[1:])])


def without_folders(text: str) -> str:
    """Absolute paths cut to their last part."""
    return re.sub(r"(?<![\w.])/(?:[^\s/=]+/)+", "", text)


def last_words(output: str, letters: int) -> str:
    """Last line of a process' output, at most `letters` long, without folders of this machine."""
    lines = output.strip().splitlines()
    return without_folders(lines[-1])[:letters] if lines else "it said nothing"


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
