"""Surfaces: h5 files of KerasHub, adapters of PEFT."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bloomref import BloomBackbone
from bloomref.formats.layouts import keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import Params, init_params
from tools.faults.damage import copied, damage_file, damaged_bytes, damaged_json, pick
from tools.faults.model_files import (
    CONFIG,
    damaged_safetensors,
    differs_from_reader,
    file_surface,
    read_tensors,
    write_model,
)
from tools.faults.trials import Surface, Trial

LORA = "x.lora.h5"


def _write_keras(folder: Path) -> None:
    keras.save(folder, CONFIG, init_params(CONFIG, 1))
    backbone = BloomBackbone.from_params(CONFIG, init_params(CONFIG, 1))
    backbone.enable_lora(rank=2)
    backbone.save_adapter(folder / LORA)


def _load_both(folder: Path) -> Params:
    params = open_checkpoint(folder).params()
    BloomBackbone.from_params(CONFIG, init_params(CONFIG, 1)).load_adapter(folder / LORA)
    return params


def _numbers_of_h5(path: Path) -> Any:
    """Every number of the file, sorted, as h5py reads them."""
    import h5py

    numbers: list[Any] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: numbers.append(item[()].ravel()) if isinstance(item, h5py.Dataset) else None)
    return np.sort(np.concatenate(numbers))


def _other_numbers(params: Params, folder: Path, _: Path) -> str:
    own = np.sort(np.concatenate([array.ravel() for _, _, array in params.named()]))
    return "" if np.array_equal(own, _numbers_of_h5(folder / "model.weights.h5")) else "h5py reads other numbers"


KERAS = file_surface(
    "keras",
    "Keras h5 and LoRA h5",
    _write_keras,
    lambda folder: [folder / "model.weights.h5", folder / LORA],
    _load_both,
    change=damaged_bytes,
    judge=_other_numbers,
    needs="h5py",
)

# --- PEFT ----------------------------------------------------------------------------------------

_KINDS: tuple[dict[str, Any], ...] = (
    {"r": 2, "target_modules": ["query_key_value", "dense"], "rank_pattern": {"h.0.*dense": 3}, "lora_dropout": 0.1},
    {"r": 2, "bias": "all", "modules_to_save": ["ln_f"], "trainable_token_indices": [1, 5]},
    {"r": 3, "use_dora": True, "target_modules": "all-linear", "exclude_modules": ["dense"], "use_rslora": True},
)


def _write_adapters(folder: Path) -> None:
    folder.mkdir()
    write_model(folder / "model")
    for i, settings in enumerate(_KINDS):
        backbone = BloomBackbone.from_preset(folder / "model")
        backbone.add_adapter(settings)
        backbone.save_adapter(folder / f"adapter-{i}")


def _adapter_trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    folder = copied(base, scratch)
    adapter = pick(rng, [folder / f"adapter-{i}" for i in range(len(_KINDS))])
    weights = adapter / "adapter_model.safetensors"
    if rng.random() < 0.6:
        path = adapter / "adapter_config.json"
        damage_file(path, rng, damaged_json)
    else:
        path = weights
        damage_file(path, rng, damaged_safetensors)

    def ask() -> dict[str, Any]:
        backbone = BloomBackbone.from_preset(folder / "model")
        backbone.load_adapter(adapter)
        backbone({"token_ids": [[1, 2, 16]]})
        return {}

    def judge(_: Any) -> str:
        return differs_from_reader(read_tensors(weights), weights)

    return Trial(f"{path.name} damaged", ask, judge, (path.name, weights.name, adapter.name))


ADAPTERS = Surface("peft", "PEFT adapters", _write_adapters, _adapter_trial)
SURFACES = (KERAS, ADAPTERS)
