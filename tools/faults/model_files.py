"""Surfaces: safetensors files, shard indexes, config.json."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.random import Generator

from bloomref.config import BloomConfig
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.params import Params, init_params
from tools.faults.damage import copied, damage_file, damaged_bytes, damaged_json, pick
from tools.faults.trials import Surface, Trial, command

CONFIG = BloomConfig(vocabulary_size=17, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
_HF_SIZES = {
    "vocab_size": "vocabulary_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "hidden_size": "hidden_dim",
}


def file_surface(
    name: str,
    title: str,
    make: Callable[[Path], object],
    files: Callable[[Path], list[Path]],
    ask: Callable[[Path], Any],
    *,
    change: Callable[[bytes, Generator], bytes] = damaged_bytes,
    judge: Callable[[Any, Path, Path], str] = lambda *_: "",
    needs: str = "",
    names: tuple[str, ...] = (),
) -> Surface:
    """Surface of one damaged file among others.

    Args:
        name, title, make, needs: as of `Surface`.
        files: the files of a folder, one of which is damaged.
        ask: the question about the folder.
        change: the damage to the file's content.
        judge: what is wrong with (an answer, the damaged folder, the undamaged folder).
        names: what a message may name besides the folder and the file.
    """

    def trial(base: Path, scratch: Path, rng: Generator) -> Trial:
        folder = copied(base, scratch)
        path = pick(rng, sorted(files(folder)))
        damage_file(path, rng, change)
        return Trial(
            f"{path.name} damaged",
            lambda: ask(folder),
            lambda answer: judge(answer, folder, base),
            (path.name, folder.name, *names),
        )

    return Surface(name, title, make, trial, needs)


# --- safetensors ---------------------------------------------------------------------------------


def _write_tensors(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    dtypes = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
    arrays = {f"layers.{i}.weight": rng.standard_normal((3, 2 + i)).astype(dtype) for i, dtype in enumerate(dtypes)}
    write_safetensors(folder / "x.safetensors", arrays, {"format": "pt"})


def damaged_safetensors(data: bytes, rng: Generator) -> bytes:
    """Change the header as JSON, its length, or any byte."""
    if rng.random() < 0.3:
        return damaged_bytes(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = damaged_json(data[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.9 else pick(rng, (0, 1, length + 1, 10**8, 2**63, 2**64 - 1))
    return struct.pack("<Q", stated) + header + data[8 + length :]


def read_tensors(path: Path) -> dict[str, Any]:
    """Every tensor of a file, as bloomref reads it."""
    file = SafetensorsFile(path)
    return {name: np.array(file.view(name)) for name in file.entries}


def differs_from_reader(arrays: dict[str, Any], path: Path) -> str:
    """Name of a tensor that the safetensors package reads otherwise; an empty text if there is none."""
    from safetensors import SafetensorError, deserialize

    try:
        others = dict(deserialize(path.read_bytes()))
    except SafetensorError as error:
        return f"safetensors refuses it: {str(error)[:100]}"
    if others.keys() != arrays.keys():
        return "safetensors reads other names"
    for name, array in arrays.items():
        if list(array.shape) != list(others[name]["shape"]) or array.tobytes() != bytes(others[name]["data"]):
            return f"safetensors reads another {name}"
    return ""


SAFETENSORS = file_surface(
    "safetensors",
    "safetensors",
    _write_tensors,
    lambda folder: [folder / "x.safetensors"],
    lambda folder: read_tensors(folder / "x.safetensors"),
    change=damaged_safetensors,
    judge=lambda arrays, folder, _: differs_from_reader(arrays, folder / "x.safetensors"),
)


# --- shard indexes and config.json ---------------------------------------------------------------


def write_model(folder: Path, max_shard_bytes: int = 10**9) -> None:
    """A small model in the layout of Hugging Face."""
    hf.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=max_shard_bytes)


def bytes_of(params: Params) -> dict[str, bytes]:
    """Name of each weight -> its bytes."""
    return {name: array.tobytes() for name, _, array in params.named()}


def _other_weights(params: Params, _: Path, base: Path) -> str:
    return "" if bytes_of(params) == bytes_of(open_checkpoint(base).params()) else "other weights than undamaged"


INDEX = file_surface(
    "index",
    "shard indexes",
    lambda folder: write_model(folder, 4000),
    lambda folder: [folder / "model.safetensors.index.json"],
    lambda folder: open_checkpoint(folder).params(),
    change=damaged_json,
    judge=_other_weights,
    names=("model-0",),
)


def _open_and_inform(folder: Path) -> BloomConfig:
    checkpoint = open_checkpoint(folder)
    checkpoint.params()
    command(["info", str(folder), "--json"])
    return checkpoint.config


def _other_sizes(config: BloomConfig, folder: Path, _: Path) -> str:
    """Sizes that the file gives otherwise. A size that it does not give as an integer cannot be compared."""
    data = json.loads((folder / "config.json").read_bytes())
    for key, name in _HF_SIZES.items():
        if type(data.get(key)) is int and data[key] != getattr(config, name):
            return f"{name} is {getattr(config, name)!r}, {key} in the file {data[key]!r}"
        if key in data and data[key] is not None and type(data[key]) is not int:
            return f"{key} {data[key]!r:.60} is accepted as {getattr(config, name)!r}"
    return ""


CONFIGS = file_surface(
    "config",
    "config.json",
    write_model,
    lambda folder: [folder / "config.json"],
    _open_and_inform,
    change=damaged_json,
    judge=_other_sizes,
    names=("model.safetensors",),
)
SURFACES = (SAFETENSORS, INDEX, CONFIGS)
