"""Check that a folder of vectors equals what `bloomref vectors` writes: form, references, files and numbers."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.mistakes import MISTAKES
from bloomref.conformance.vectors.author import write
from bloomref.conformance.vectors.author.clauses import specified
from bloomref.conformance.vectors.author.schema import SCHEMA, problems
from bloomref.conformance.vectors.read import REPOSITORY
from bloomref.errors import BadWeights
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.shapes import Array

EXPECTED = 1e-12
"""Largest difference of an expected tensor, relative to its largest number: last bits depend on processor and NumPy."""
SIGMA = 1e-6
"""Largest relative difference of a sigma: it is an rms of differences near 1e-8, so fewer digits agree."""


def check(folder: Path, report: Callable[[str], None] = lambda _: None) -> list[str]:
    """Return a sentence on each problem.

    Args:
        report: called with the name of each topic while its vectors are computed.
    """
    with write.built(report) as fresh:
        return [*lint(folder), *_compare(folder, fresh)]


# --- form ------------------------------------------------------------------------------------------------------------


def lint(folder: Path) -> Iterator[str]:
    """Yield a sentence on each problem of the JSON files, without computing numbers."""
    topics, ids = {}, Counter[str]()
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        if path.name != write.SCHEMA_FILE:
            wrong = [f"{path.name}: {text}" for text in problems(data, SCHEMA)]
            yield from wrong
            if not wrong:
                topics[path.name] = data
    for name, data in topics.items():
        ids.update(test["id"] for test in data["tests"])
        yield from (f"{name}: {text}" for text in _of_topic(folder, data))
    yield from (f"the id {name} is there {count} times" for name, count in ids.items() if count > 1)


def _of_topic(folder: Path, data: Mapping[str, Any]) -> Iterator[str]:
    used = {flag for test in data["tests"] for flag in test["flags"]}
    yield from (f"flag {flag}: it has no note" for flag in sorted(used - data["notes"].keys()))
    yield from (f"note {flag}: no test has this flag" for flag in sorted(data["notes"].keys() - used))
    named = {mistake.name for mistake in MISTAKES}
    for flag, note in data["notes"].items():
        yield from (f"note {flag}: no known mistake is called {name}" for name in note["mistakes"] if name not in named)
    tensors = _tensor_names(folder, data)
    for test in data["tests"]:
        yield from (f"{test['id']}: {text}" for text in _of_test(folder, test, tensors))
    placed = {key for test in data["tests"] for answer in test.get("answers", []) for key in answer["tensors"].values()}
    yield from (
        f"tensor {name}: no test names it" for name in sorted(tensors) if name.removesuffix("/sigma") not in placed
    )


def _of_test(folder: Path, test: Mapping[str, Any], tensors: frozenset[str]) -> Iterator[str]:
    if CLAUSES:
        yield from (f"there is no clause {name}" for name in test["clauses"] if name not in CLAUSES)
    yield from (
        f"there is no folder {test[key]}" for key in ("model", "adapter") if not (folder / test.get(key, ".")).is_dir()
    )
    for answer in test.get("answers", []):
        named = {name for key in answer["tensors"].values() for name in (key, f"{key}/sigma")}
        yield from (f"there is no tensor {name}" for name in sorted(named - tensors))
    expectations = {key for key in ("error", "output", "answers") if key in test}
    allowed = {"valid": ({"output"}, {"answers"}), "invalid": ({"error"},), "unspecified": ({"answers"},)}
    if expectations not in allowed[test["expect"]]:
        names = ", ".join(sorted(expectations)) or "nothing to expect"
        yield f"a question that is {test['expect']} cannot have {names}"
    if test["expect"] == "unspecified" and len(test["answers"]) < 2:
        yield "a question that is unspecified needs several answers"


def _tensor_names(folder: Path, data: Mapping[str, Any]) -> frozenset[str]:
    path = folder / data.get("expected", "")
    return frozenset(SafetensorsFile(path).entries) if path.is_file() else frozenset()


def _clauses() -> frozenset[str]:
    """Clauses of the specification; an installed package has none."""
    return frozenset(specified(REPOSITORY.parents[1])) if REPOSITORY.is_dir() else frozenset()


CLAUSES = _clauses()


# --- numbers ---------------------------------------------------------------------------------------------------------


def _compare(folder: Path, fresh: Path) -> Iterator[str]:
    """Yield a sentence on each file that differs from a fresh folder."""
    have, want = write.listing(folder), write.listing(fresh)
    yield from (f"{name}: missing" for name in sorted(want - have))
    yield from (f"{name}: not a file of the vectors" for name in sorted(have - want))
    for name in sorted(have & want):
        if (folder / name).read_bytes() != (fresh / name).read_bytes():
            yield from _differences(name, folder / name, fresh / name)


def _differences(name: str, path: Path, fresh: Path) -> Iterator[str]:
    """Compare a file that differs: expected tensors may differ by their last bits, any other file may not."""
    if not re.fullmatch(r"expected/\w+\.safetensors", name):
        yield f"{name}: not what `bloomref vectors` writes"
        return
    try:
        old, new = SafetensorsFile(path), SafetensorsFile(fresh)
    except BadWeights as error:
        yield str(error)
        return
    if old.entries.keys() != new.entries.keys():
        yield f"{name}: other names of tensors than expected"
        return
    for key in new.entries:
        allowed = SIGMA if key.endswith("/sigma") else EXPECTED
        if not close(old.view(key), new.view(key), allowed):
            yield f"{name}: {key} is not what the reference gives"


def close(a: Array, b: Array, allowed: float) -> bool:
    """True if two arrays are equal but for the last bits, with the same infinities and NaN."""
    if a.shape != b.shape:
        return False
    finite = np.isfinite(b)
    largest = np.abs(b[finite]).max(initial=0.0)
    return np.array_equal(a[~finite], b[~finite], equal_nan=True) and bool(
        np.all(np.abs(a[finite] - b[finite]) <= allowed * largest)
    )
