"""Write the folder of vectors."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bloomref.conformance.vectors.author import exact, forward, losses, weight_files
from bloomref.conformance.vectors.author.draft import TIER_NAMES, Draft
from bloomref.conformance.vectors.author.notes import NOTES
from bloomref.conformance.vectors.author.schema import SCHEMA, dumps
from bloomref.conformance.vectors.author.vector_models import MODELS
from bloomref.formats.safetensors_io import write_safetensors
from bloomref.formats.staging import staged_file
from bloomref.shapes import Array

SCHEMA_FILE = "vectors.schema.json"
README = "README.md"
"""The only file of the folder that is not generated."""
AUTHORS: dict[str, Callable[[], list[Draft]]] = {
    "config": exact.config,
    "embedding": forward.embedding,
    "alibi": lambda: exact.slopes() + forward.alibi(),
    "attention": forward.attention,
    "mlp": forward.mlp,
    "model": forward.model,
    "cache": forward.cache,
    "generation": exact.generation,
    "gradients": losses.loss,
    "lora": weight_files.lora,
    "weights": weight_files.weights,
    "numerics": exact.numerics,
}
"""Topic -> the function that drafts its vectors."""


def build(folder: Path, report: Callable[[str], None] = lambda _: None) -> None:
    """Write everything but the README into an empty folder. The bytes depend on NumPy's version and the processor only.

    Args:
        report: called with the name of each topic.
    """
    (folder / "expected").mkdir(parents=True)
    for name, case in MODELS.items():
        weight_files.write_model(folder / "models" / name, case)
    weight_files.write_folders(folder)
    (folder / SCHEMA_FILE).write_text(dumps(SCHEMA) + "\n", "utf-8")
    for topic, draft in AUTHORS.items():
        report(topic)
        write_topic(folder, topic, draft())


def write_topic(folder: Path, topic: str, drafts: Sequence[Draft]) -> None:
    """Write the JSON file of a topic, and its expected tensors."""
    tensors: dict[str, Array] = {}
    tests = [_entry(draft, tensors) for draft in drafts]
    used = sorted({flag for draft in drafts for flag in draft.flags})
    notes = {flag: {"bug": NOTES[flag].bug, "effect": NOTES[flag].effect, "mistakes": list(NOTES[flag].mistakes)} for flag in used}  # fmt: skip
    expected = f"expected/{topic}.safetensors"
    data = {
        "version": 1,
        "topic": topic,
        "tiers": list(TIER_NAMES),
        "expected": expected,
        "notes": notes,
        "tests": tests,
    }
    if tensors:
        write_safetensors(folder / expected, tensors, {})
    else:
        del data["expected"]
    (folder / f"{topic}.json").write_text(dumps(data) + "\n", "utf-8")


def _entry(draft: Draft, tensors: dict[str, Array]) -> dict[str, Any]:
    optional = {
        "error": draft.error,
        "model": draft.model,
        "adapter": draft.adapter,
        "input": dict(draft.arguments),
        "output": dict(draft.output),
        "answers": [_answer(draft, i, tensors) for i in range(len(draft.answers))],
    }
    entry = {"id": draft.id, "clauses": list(draft.clauses), "comment": draft.comment, "flags": list(draft.flags), "ask": draft.ask, "expect": draft.expect}  # fmt: skip
    return entry | {key: value for key, value in optional.items() if value}


def _answer(draft: Draft, number: int, tensors: dict[str, Array]) -> dict[str, Any]:
    """Compute an answer; add each value to `tensors` as `<prefix>/<name>`, and its sigma as `<prefix>/<name>/sigma`."""
    note, compute = draft.answers[number]
    prefix = draft.id if len(draft.answers) == 1 else f"{draft.id}/{number}"
    keys = {}
    for name, (value, sigma) in compute().items():
        keys[name] = f"{prefix}/{name}"
        tensors[keys[name]], tensors[f"{keys[name]}/sigma"] = value, sigma
    return {"note": note, "tensors": keys}


# --- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def built(report: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """Context manager: a fresh temporary folder of vectors."""
    with tempfile.TemporaryDirectory(prefix="bloomref_vectors_") as scratch:
        folder = Path(scratch) / "vectors"
        build(folder, report)
        yield folder


def write(target: Path, report: Callable[[str], None] = lambda _: None) -> int:
    """Bring a folder up to date: replace files atomically, remove obsolete ones. Return its size in bytes."""
    with built(report) as fresh:
        current = listing(fresh)
        for name in current:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with staged_file(target / name) as stage:
                shutil.copyfile(fresh / name, stage)
        for name in listing(target) - current:
            (target / name).unlink()
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return sum((target / name).stat().st_size for name in current)


def listing(folder: Path) -> set[str]:
    """Return the relative path of every file in the folder, without the README."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {README}
