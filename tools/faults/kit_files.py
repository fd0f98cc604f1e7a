"""Surfaces of the conformance kit: trace files, vectors, waivers. And pickled weights."""

import json
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bloomref.conformance.run.waivers import SHIPPED, read_waivers
from bloomref.conformance.vectors.read import locate
from bloomref.formats.pickles.from_pickle import convert
from bloomref.params import init_params
from tools.faults.damage import damaged_bytes, damaged_json, pick
from tools.faults.model_files import (
    CONFIG,
    damaged_safetensors,
    differs_from_reader,
    file_surface,
    read_tensors,
    write_model,
)
from tools.faults.talking_model import write_talker
from tools.faults.trials import command

# --- traces --------------------------------------------------------------------------------------

_TRACE = "trace.safetensors"


def _write_trace(folder: Path) -> None:
    write_talker(folder)
    command(["trace", "Everyone has", "-o", str(folder / _TRACE), "-m", str(folder)])


def _diff(folder: Path) -> bool:
    return bool(json.loads(command(["diff", "numpy", str(folder / _TRACE), "--json"]))["differ"])


def _unseen_change(differ: bool, folder: Path, base: Path) -> str:
    arrays, originals = read_tensors(folder / _TRACE), read_tensors(base / _TRACE)
    if problem := differs_from_reader(arrays, folder / _TRACE):
        return problem
    for name in arrays.keys() & originals.keys():
        one, two = arrays[name].astype(np.float64), originals[name].astype(np.float64)
        if (
            not differ
            and one.shape == two.shape
            and not np.allclose(one, two, rtol=0.01, atol=0.01 * np.abs(two).max())
        ):
            return f"they agree, although {name} was changed"
    return ""


TRACES = file_surface(
    "trace",
    "trace files, `diff`",
    _write_trace,
    lambda folder: [folder / _TRACE],
    _diff,
    change=damaged_safetensors,
    judge=_unseen_change,
    names=("trace", "model", "preset", "token"),
)


# --- vectors -------------------------------------------------------------------------------------

_TOPICS = ("alibi", "config", "weights")


def _write_vectors(folder: Path) -> None:
    source = locate()
    folder.mkdir()
    for topic in _TOPICS:
        shutil.copyfile(source / f"{topic}.json", folder / f"{topic}.json")
    for name in ("expected", "models", "checkpoints", "adapters"):
        shutil.copytree(source / name, folder / name)
    _ask_vectors(folder)


def _ask_vectors(folder: Path) -> str:
    return command(["vectors", "--backend", "numpy", "--dtype", "float32", "--folder", str(folder), "--json"])


def _vector_files(folder: Path) -> list[Path]:
    return [folder / f"{topic}.json" for topic in _TOPICS] * 4 + [folder / "expected" / "alibi.safetensors"]


def _damaged_vectors(data: bytes, rng: Generator) -> bytes:
    return damaged_json(data, rng) if data[:1] == b"{" else damaged_safetensors(data, rng)


VECTORS = file_surface(
    "vectors",
    "vectors folders",
    _write_vectors,
    _vector_files,
    _ask_vectors,
    change=_damaged_vectors,
    names=_TOPICS,
)


# --- waivers -------------------------------------------------------------------------------------


def _write_waivers(folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(SHIPPED / "ctranslate2.toml", folder / "x.toml")


def _damaged_toml(data: bytes, rng: Generator) -> bytes:
    values = (b"3", b"[]", b"{}", b"true", b"''", b"1979-05-27", b"[" * 5000, b'"\\u0000"', b'"a\\nb"', b"nan", b"inf")
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    lines = data.splitlines()
    place = pick(rng, [i for i, line in enumerate(lines) if b" = " in line])
    key = pick(rng, (lines[place].split(b" = ")[0], b"other", b"where.x", b"", b"[[x]]\nwhere"))
    lines[place] = key + b" = " + pick(rng, values)
    return b"\n".join(lines)


def _other_waivers(waivers: Any, folder: Path, _: Path) -> str:
    entries = tomllib.loads((folder / "x.toml").read_text("utf-8")).get("waiver", [])
    own = [(waiver.where, waiver.reason) for waiver in waivers]
    if not all(isinstance(text, str) and text for pair in own for text in pair):
        return "a waiver without a text"
    return "" if own == [(entry["where"], entry["reason"]) for entry in entries] else "tomllib reads other waivers"


WAIVERS = file_surface(
    "waivers",
    "waivers",
    _write_waivers,
    lambda folder: [folder / "x.toml"],
    lambda folder: read_waivers([str(folder / "x.toml")]),
    change=_damaged_toml,
    judge=_other_waivers,
)


# --- pickles -------------------------------------------------------------------------------------


def _write_pickle(folder: Path) -> None:
    import torch

    write_model(folder)
    (folder / "model.safetensors").unlink()
    arrays = {f"transformer.{key}": array for key, array in _hf_arrays().items()}
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "pytorch_model.bin")


def _hf_arrays() -> dict[str, Any]:
    return {
        key: np.ascontiguousarray(array.reshape(weight.hf_shape(CONFIG)))
        for key, weight, array in init_params(CONFIG, 1).named()
    }


def _damaged_archive(data: bytes, rng: Generator) -> bytes:
    """Damage the container, or the pickle in it."""
    import io

    if rng.random() < 0.3:
        return damaged_bytes(data, rng)
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            content = old.read(name)
            archive.writestr(name, damaged_bytes(content, rng) if name.endswith("data.pkl") else content)
    return new.getvalue()


def _convert(folder: Path) -> dict[str, Any]:
    convert(folder, folder / "out")
    return read_tensors(folder / "out" / "model.safetensors")


def _other_tensors(arrays: dict[str, Any], folder: Path, _: Path) -> str:
    """A remark if they are neither the undamaged ones nor those that torch reads."""
    original = {f"transformer.{key}": array.tobytes() for key, array in _hf_arrays().items()}
    if original == {name: array.tobytes() for name, array in arrays.items()}:
        return ""
    import torch

    try:
        others = torch.load(folder / "pytorch_model.bin", weights_only=True)
        same = {name: tensor.numpy().tobytes() for name, tensor in others.items()}
    except Exception as error:  # torch has many
        return f"torch refuses it: {error!s:.80}"
    return "" if same == {name: array.tobytes() for name, array in arrays.items()} else "torch reads other tensors"


PICKLES = file_surface(
    "pickle",
    "pickles (`convert --from-pickle`)",
    _write_pickle,
    lambda folder: [folder / "pytorch_model.bin"],
    _convert,
    change=_damaged_archive,
    judge=_other_tensors,
    names=("config.json", "model.safetensors"),
    needs="torch",
)
SURFACES = (TRACES, VECTORS, WAIVERS, PICKLES)
