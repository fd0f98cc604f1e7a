"""The process of a participant, in its interpreter: `python -m benchmarks.participants.child TASK NAME FOLDER DTYPE`.

probe      report the reason why it cannot run, or null, and the versions of its packages
convert    write the model in the participant's format
start      load, prefill a prompt, compute one token, end
serve      load, then answer requests until the input ends
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.children import own_stdout, serve
from benchmarks.participants import PARTICIPANTS


def main() -> None:
    task, name, folder, dtype = sys.argv[1:]
    {"probe": _probe, "convert": _convert, "start": _start, "serve": _serve}[task](name, Path(folder), dtype)


def _module(name: str) -> Any:
    return import_module(f"benchmarks.participants.{PARTICIPANTS[name].module}")


def _probe(name: str, _folder: Path, dtype: str) -> None:
    from benchmarks.machine import versions

    say = own_stdout()
    say({"reason": _reason(name, dtype), "versions": versions(PARTICIPANTS[name].packages)})


def _reason(name: str, dtype: str) -> str | None:
    missing = [module for module in ("threadpoolctl", *PARTICIPANTS[name].imports) if not _importable(module)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if name == "numpy" and dtype == "bfloat16":
        return "the reference widens bfloat16 weights at every step: it is no contestant"
    module = _module(name)
    return module.unsupported(dtype) if hasattr(module, "unsupported") else None


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def _convert(name: str, folder: Path, dtype: str) -> None:
    say = own_stdout()
    module = _module(name)
    if hasattr(module, "convert"):
        module.convert(folder, dtype)
    say({})


def _load(name: str, folder: Path, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The model; the seconds of importing its library and loading it, and the memory afterwards."""
    from benchmarks.floors import cores
    from benchmarks.machine import memory

    began = perf_counter()
    model = _module(name).Model(folder, dtype, name, cores())
    return model, {"load_seconds": perf_counter() - began, "loaded": memory()}


def _start(name: str, folder: Path, dtype: str) -> None:
    import numpy as np

    from benchmarks.machine import memory
    from benchmarks.model import PROMPT

    say = own_stdout()
    model, facts = _load(name, folder, dtype)
    model.run(np.load(folder / "ids.npy", mmap_mode="r")[:1, :PROMPT], 0)
    say({"first": True})
    say({**facts, "end": memory()})


def _serve(name: str, folder: Path, dtype: str) -> None:
    import numpy as np

    from benchmarks.machine import blas_info, memory
    from benchmarks.model import CHECKED

    ids = np.load(folder / "ids.npy")
    model: Any = None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal model
        match request:
            case {"what": "load"}:
                model, facts = _load(name, folder, dtype)
                return facts
            case {"what": "logits", "file": file}:
                rows, tokens = CHECKED
                np.save(file, np.asarray(model.logits(ids[:rows, :tokens]), np.float32))
                return {}
            case {"what": "run", "rows": rows, "context": context, "steps": steps}:
                prefill, step = model.run(ids[:rows, :context], steps)
                return {"prefill": prefill, "decode": step}
            case {"what": "product"}:
                return {"rate": model.product_rate()}
            case _:
                return {"threads": blas_info(), "memory": memory()}

    serve(answer)


if __name__ == "__main__":
    main()
