"""Golden files: a model, an input and what a peer answered, in one safetensors file with its provenance.

weights/*           float16, under Hugging Face's keys; every value is exact in float16, so nothing is lost
inputs/token_ids    (B, T) int64
inputs/is_real      (B, T) uint8, 1 where the token is real
inputs/positions    the positions at which every expected array is stored
expected/*          (B, positions, ...) of one forward pass, under bloomref's names
expected_cached/*   (B, positions, ...) of the run over a cache, in the chunks (`pieces`) of the provenance
The metadata entry `provenance` is JSON: peer, versions, seed, command, config, dtype, pieces, sha256 of the weights.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from parity.cases import ParityCase
from safetensors import safe_open
from safetensors.numpy import save_file

from bloomref.config import BloomConfig
from bloomref.params import Params

FOLDER = Path(__file__).parent
Arrays = dict[str, np.ndarray]
RENAMED = {"none": "real", "hole": "holes"}
"""Names of masks in the files -> names in `parity.cases`."""


@dataclass(frozen=True, eq=False)
class Golden:
    """One file, read."""

    case: ParityCase
    positions: np.ndarray
    expected: Arrays
    expected_cached: Arrays
    provenance: dict[str, Any]
    weights: Arrays


def read(path: Path) -> Golden:
    with safe_open(path, framework="np") as file:
        provenance = json.loads(file.metadata()["provenance"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    weights = _below("weights/", arrays)
    config = BloomConfig.from_hf(provenance["config"])
    params = Params.from_named(config, {key: array.astype(np.float64) for key, array in weights.items()})
    inputs = _below("inputs/", arrays)
    case = ParityCase(
        provenance["seed"],
        config,
        params,
        inputs["token_ids"],
        inputs["is_real"].astype(bool),
        RENAMED.get(provenance["padding"], provenance["padding"]),
        tuple(provenance["pieces"]),
    )
    expected, cached = _below("expected/", arrays), _below("expected_cached/", arrays)
    return Golden(case, inputs["positions"], expected, cached, provenance, weights)


def write(
    name: str, case: ParityCase, positions: np.ndarray, expected: Arrays, expected_cached: Arrays, **provenance: Any
) -> None:
    """Write `name`.safetensors next to this module, whole or not at all."""
    config, params = case.config, case.params
    weights = {key: array.reshape(row.hf_shape(config)).astype(np.float16) for key, row, array in params.named()}
    arrays = {
        **{f"weights/{key}": array for key, array in weights.items()},
        "inputs/token_ids": case.token_ids.astype(np.int64),
        "inputs/is_real": case.is_real.astype(np.uint8),
        "inputs/positions": positions.astype(np.int64),
        **{f"expected/{key}": array[:, positions] for key, array in expected.items()},
        **{f"expected_cached/{key}": array[:, positions] for key, array in expected_cached.items()},
    }
    facts = {
        **provenance,
        "seed": case.seed,
        "config": config.to_hf(),
        "padding": case.padding,
        "pieces": list(case.pieces),
        "weights_sha256": fingerprint(weights),
    }
    path = FOLDER / f"{name}.safetensors"
    partial = path.with_suffix(".partial")
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    save_file(contiguous, partial, {"provenance": json.dumps(facts, sort_keys=True)})
    os.replace(partial, path)


def fingerprint(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over key, shape and bytes of every weight, in the order of the keys."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].shape}".encode())
        digest.update(np.ascontiguousarray(weights[key]).tobytes())
    return digest.hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def paths(pattern: str = "*") -> list[Path]:
    return sorted(FOLDER.glob(f"{pattern}.safetensors"))


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
