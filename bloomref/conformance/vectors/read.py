"""Reads the vectors: from the repository, from an installed package, or from a folder that is named."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.tags import TAGS
from bloomref.errors import Unsupported, invalid
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.shapes import Array, Bool, Int

PACKAGED = Path(__file__).parent / "data"
"""Where a wheel has them."""
REPOSITORY = Path(__file__).parents[3] / "specs" / "vectors"


@dataclass(frozen=True)
class Stored(Lora):
    """An adapter that is there already."""

    path: Path = Path()

    def write(self, folder: Path, config: BloomConfig) -> Path:  # noqa: ARG002
        return Path(shutil.copytree(self.path, folder / "adapter"))


@dataclass(frozen=True, eq=False)
class Vector:
    """One test of a JSON file.

    Args:
        entry: its object.
        tensors: those of the topic.
    """

    folder: Path
    topic: str
    tiers: tuple[str, ...]
    entry: dict[str, Any] = field(repr=False)
    tensors: SafetensorsFile | None = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.entry["id"])

    @property
    def given(self) -> dict[str, Any]:
        return dict(self.entry.get("input", {}))

    def path(self, kind: str) -> Path:
        """The folder of its model or of its adapter."""
        return self.folder / str(self.entry[kind])

    def answers(self) -> Iterator[tuple[str, dict[str, tuple[Array, Array]]]]:
        """(note, name -> (expected, sigma)) of each right answer; sigma has the tiers as its first axis."""
        assert self.tensors is not None or "answers" not in self.entry
        for answer in self.entry.get("answers", []):
            file: Any = self.tensors
            found = {name: (file.view(key), file.view(f"{key}/sigma")) for name, key in answer["tensors"].items()}
            yield answer["note"], found

    @cached_property
    def case(self) -> Case:
        """The model and the input, as the kit asks of an implementation."""
        case = _model(self.path("model"))
        ids, real = self.inputs
        given: dict[str, Any] = {"params": case.params, "token_ids": ids, "is_real": real}
        made = Case(
            case.config,
            seed=case.seed,
            batch=ids.shape[0],
            time=ids.shape[1],
            kind=kind(real),
            cuts=tuple(self.given.get("cuts", ())),
            flags=frozenset(self.entry["flags"]) & TAGS.keys(),
            name=self.id,
            lora=Stored(path=self.path("adapter")) if "adapter" in self.entry else None,
        )
        vars(made).update(given)
        return made

    @cached_property
    def inputs(self) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Token ids and mask: what is legal of the input; in place of anything else one token, since it only serves to load a model."""
        ids = np.array(self.given.get("token_ids", [[0]]))
        if ids.ndim != 2 or ids.dtype.kind != "i" or self.entry["expect"] == "invalid":
            return np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
        return ids, np.array(self.given.get("padding_mask", np.ones(ids.shape)), bool)


def kind(is_real: Bool[Array, "B T"]) -> str:
    """What is the matter with a mask, in the words of `cases.MASKS`: the hardest of its rows."""
    if is_real.all():
        return "real"
    if not is_real.any(axis=1).all():
        return "padding row"
    rises, falls = (np.diff(is_real.astype(int), axis=1) == step for step in (1, -1))
    if (rises.sum(axis=1) + falls.sum(axis=1) > 1).any() or (rises.any() and falls.any()):
        return "holes"
    return "left" if rises.any() else "right"


@lru_cache(64)
def _model(folder: Path) -> Case:
    """Every folder gets a number of its own: by it a `Subject` knows which model it has loaded."""
    config = BloomConfig.from_hf(json.loads((folder / "config.json").read_text("utf-8")))
    file = SafetensorsFile(folder / "model.safetensors")
    stored = {name: file.view(name).astype(np.float64) for name in file.entries}
    case = Case(config, seed=_model.cache_info().misses)
    vars(case)["params"] = params_of(config, stored)
    return case


def locate(folder: Path | None = None) -> Path:
    """The folder of the vectors.

    Raises:
        Unsupported: this installation has none; InvalidInput: the folder that was named has none.
    """
    if folder is not None:
        if not any(folder.glob("*.json")):
            raise invalid("folder", "a folder that `bloomref vectors` wrote", str(folder))
        return folder
    for found in (PACKAGED, REPOSITORY):
        if any(found.glob("*.json")):
            return found
    raise Unsupported("vectors: this installation has none; `bloomref vectors --folder DIR` writes them")


@lru_cache(4)
def read(folder: Path) -> tuple[Vector, ...]:
    """Every vector of a folder, in the order of the topics' names."""
    found: list[Vector] = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        if "tests" in data:
            tensors = SafetensorsFile(folder / data["expected"]) if "expected" in data else None
            found += [Vector(folder, data["topic"], tuple(data["tiers"]), test, tensors) for test in data["tests"]]
    return tuple(found)
