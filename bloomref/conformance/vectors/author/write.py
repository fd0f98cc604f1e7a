"""Writes the folder of vectors."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bloomref.conformance.vectors.author import exact, forward, losses, weight_files
from bloomref.conformance.vectors.author.draft import TIER_NAMES, Draft
from bloomref.conformance.vectors.author.models import MODELS
from bloomref.conformance.vectors.author.notes import NOTES
from bloomref.conformance.vectors.author.schema import SCHEMA, dumps
from bloomref.formats.safetensors_io import write_safetensors
from bloomref.shapes import Array

SCHEMA_FILE = "vectors.schema.json"
README = "README.md"
"""The only file of the folder that is written by hand."""
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
"""Topic -> the function that writes its vectors."""


def build(folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Write everything but the README into a folder that is empty; `tell` hears the name of each topic.

    Given the same NumPy and processor, the same bytes.
    """
    (folder / "expected").mkdir(parents=True)
    for name, case in MODELS.items():
        weight_files.write_model(folder / "models" / name, case)
    weight_files.write_folders(folder)
    (folder / SCHEMA_FILE).write_text(dumps(SCHEMA) + "\n", "utf-8")
    for topic, make in AUTHORS.items():
        tell(topic)
        write_topic(folder, topic, make())


def write_topic(folder: Path, topic: str, drafts: Sequence[Draft]) -> None:
    """One JSON file, and the tensors that it names."""
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
        "input": dict(draft.given),
        "output": dict(draft.output),
        "answers": [_answer(draft, i, tensors) for i in range(len(draft.answers))],
    }
    entry = {"id": draft.id, "clauses": list(draft.clauses), "comment": draft.comment, "flags": list(draft.flags), "ask": draft.ask, "expect": draft.expect}  # fmt: skip
    return entry | {key: value for key, value in optional.items() if value}


def _answer(draft: Draft, number: int, tensors: dict[str, Array]) -> dict[str, Any]:
    """`tensors` gets each value as `<prefix>/<name>` and its sigma as `<prefix>/<name>/sigma`."""
    note, compute = draft.answers[number]
    prefix = draft.id if len(draft.answers) == 1 else f"{draft.id}/{number}"
    placed = {}
    for name, (value, sigma) in compute().items():
        placed[name] = f"{prefix}/{name}"
        tensors[placed[name]], tensors[f"{placed[name]}/sigma"] = value, sigma
    return {"note": note, "tensors": placed}


# --- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def built(tell: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """The folder as it should be, for a while."""
    with tempfile.TemporaryDirectory(prefix="bloomref_vectors_") as scratch:
        folder = Path(scratch) / "vectors"
        build(folder, tell)
        yield folder


def write(target: Path, tell: Callable[[str], None] = lambda _: None) -> int:
    """Bring a folder up to date: each file appears by a rename, and those that no vector has go. How many bytes it has then."""
    with built(tell) as fresh:
        wanted = listing(fresh)
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            temporary = (target / name).with_name(f".{secrets.token_hex(6)}.tmp")
            shutil.copyfile(fresh / name, temporary)
            os.replace(temporary, target / name)
        for name in listing(target) - wanted:
            (target / name).unlink()
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return sum((target / name).stat().st_size for name in wanted)


def listing(folder: Path) -> set[str]:
    """Every file below, but for the README."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {README}
