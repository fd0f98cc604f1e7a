"""Read the test vectors of a folder, of the repository, or of the installed package."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.lora_cases import StoredLora
from bloomref.conformance.tags import TAGS
from bloomref.errors import BadWeights, Unsupported, describe, invalid
from bloomref.formats.files import read_json, shard_path
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.shapes import Array, Bool, Int

PACKAGED = Path(__file__).parent / "data"
"""The folder of vectors in a wheel."""
REPOSITORY = Path(__file__).parents[3] / "specs" / "vectors"
"""The folder of vectors in a checkout."""


@dataclass(frozen=True, eq=False)
class Vector:
    """One vector: a question and its answers.

    Args:
        folder: the folder of all vectors.
        topic: its JSON file, without the suffix.
        tiers: names of the tiers, in the order of the first axis of every sigma.
        entry: its object in the JSON file; specs/98-vectors.md lists the keys.
        tensors: the expected tensors of the topic; None if it has none.
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
    def arguments(self) -> dict[str, Any]:
        """The object `input` of the entry."""
        return dict(self.entry.get("input", {}))

    def path(self, kind: str) -> Path:
        """Folder of the model or adapter: `kind` is "model" or "adapter"."""
        return self.folder / str(self.entry[kind])

    def answers(self) -> Iterator[tuple[str, dict[str, tuple[Array, Array]]]]:
        """Yield (note, name -> (expected, sigma)) of each right answer; the first axis of sigma is the tiers."""
        assert self.tensors is not None or "answers" not in self.entry
        for answer in self.entry.get("answers", []):
            file: Any = self.tensors
            tensors = {name: (file.view(key), file.view(f"{key}/sigma")) for name, key in answer["tensors"].items()}
            yield answer["note"], tensors

    @cached_property
    def case(self) -> Case:
        """The model and the input as a case of the kit."""
        model = _model(self.path("model"))
        ids, real = self.inputs
        return Case(
            model.config,
            batch=ids.shape[0],
            time=ids.shape[1],
            kind=kind(real),
            cuts=tuple(self.arguments.get("cuts", ())),
            flags=frozenset(self.entry["flags"]).intersection(TAGS),
            name=self.id,
            lora=StoredLora(path=self.path("adapter")) if "adapter" in self.entry else None,
            arrays=Arrays(model.params, ids, real),
        )

    @cached_property
    def inputs(self) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Token ids and mask, as int64 and bool. A single token where the input must be refused."""
        try:
            ids = np.array(self.arguments.get("token_ids", [[0]]))
        except ValueError as error:  # rows of other lengths
            raise BadWeights(describe(f"{self.topic}: {self.id}: token_ids", "an array", str(error))) from None
        if ids.ndim != 2 or ids.dtype.kind != "i" or self.entry["expect"] == "invalid":
            return np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
        return ids, np.array(self.arguments.get("padding_mask", np.ones(ids.shape)), bool)


def kind(is_real: Bool[Array, "B T"]) -> str:
    """Kind of a mask, from `cases.MASKS`; with several kinds of rows, the most difficult one."""
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
    """Read the model of a folder."""
    config = BloomConfig.from_hf(read_json(folder / "config.json"))
    file = SafetensorsFile(folder / "model.safetensors")
    weights = {name: file.view(name).astype(np.float64) for name in file.entries}
    return Case(config, arrays=Arrays(params_of(config, weights)))


def locate(folder: Path | None = None) -> Path:
    """Return the folder of the vectors: `folder`, or else that of the installation.

    Raises:
        Unsupported: the installation has no vectors.
        InvalidInput: `folder` has no vectors.
    """
    if folder is not None:
        if not any(folder.glob("*.json")):
            raise invalid("folder", "a folder that `bloomref vectors` wrote", str(folder))
        return folder
    for candidate in (PACKAGED, REPOSITORY):
        if any(candidate.glob("*.json")):
            return candidate
    raise Unsupported("vectors: this installation has none; `bloomref vectors --folder DIR` writes them")


@lru_cache(4)
def read(folder: Path) -> tuple[Vector, ...]:
    """Read every vector of a folder, sorted by topic."""
    vectors: list[Vector] = []
    for path in sorted(folder.glob("*.json")):
        data = read_json(path)
        if "tests" in data:
            _check_types(path.name, data, {"tests": list, "topic": str, "tiers": list})
            tensors = SafetensorsFile(shard_path(folder, data["expected"], path.name)) if "expected" in data else None
            for number, test in enumerate(data["tests"]):
                _check_test(f"{path.name}: test {number}", test, tensors)
            vectors += [Vector(folder, data["topic"], tuple(data["tiers"]), test, tensors) for test in data["tests"]]
    return tuple(vectors)


def _check_types(place: str, data: Any, types: dict[str, type]) -> None:
    if not isinstance(data, dict):
        raise BadWeights(describe(place, "an object", type(data).__name__))
    for name, kind_of in types.items():
        if not isinstance(data.get(name), kind_of):
            raise BadWeights(describe(f"{place}: {name}", f"a {kind_of.__name__}", data.get(name)))


def _check_test(place: str, test: Any, tensors: SafetensorsFile | None) -> None:
    """Refuse a test of another form, and one whose expected tensors are not there.

    Raises:
        BadWeights: naming the test and the key.
    """
    _check_types(place, test, {"id": str, "ask": str, "expect": str, "flags": list})
    place = f"{place}, {test['id']}"
    if not all(isinstance(flag, str) for flag in test["flags"]) or not isinstance(test.get("input", {}), dict):
        raise BadWeights(describe(place, "flags that are texts, and an object `input`", "another form"))
    if test["expect"] != "invalid" and "answers" not in test:
        _check_types(place, test, {"output": dict})
    answers = test.get("answers", [])
    if not isinstance(answers, list) or (answers and tensors is None):
        raise BadWeights(describe(f"{place}: answers", "a list, and a file of expected tensors", answers))
    for answer in answers:
        _check_types(f"{place}: answers", answer, {"note": str, "tensors": dict})
        for key in answer["tensors"].values():
            entries = tensors.entries if tensors is not None else {}
            if not isinstance(key, str) or not {key, f"{key}/sigma"} <= entries.keys():
                raise BadWeights(describe(f"{place}: answers", "names of expected tensors with their sigma", key))
