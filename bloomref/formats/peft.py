"""Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, Unsupported, describe
from bloomref.formats.arrays import check_finite
from bloomref.formats.files import read_json, staged_model, write_json
from bloomref.formats.hf import PICKLED
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.formats.safetensors_io import FLOATS, SafetensorsFile, write_safetensors
from bloomref.params import HF_PREFIX, Weight
from bloomref.shapes import Array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_OUTER = "base_model.model."
_STALE = ("adapter_model.bin",)

Pairs = dict[str, tuple[Array, Array]]
"""Hugging Face key of a weight (without `transformer.`) -> A (R, N), B (M, R) of the stored matrix (M, N)."""


def exists(folder: Path) -> bool:
    """True if the folder has an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> LoraConfig:
    """Configuration of the folder's adapter.

    Raises:
        BadWeights: when its config is missing or damaged; Unsupported: when it is no plain LoRA.
    """
    return LoraConfig.from_json(read_json(folder / CONFIG))


def read(folder: Path, config: BloomConfig) -> tuple[LoraConfig, Pairs]:
    """An adapter for a model of `config`. The arrays are copies, in the stored dtype.

    Raises:
        BadWeights: when files are missing, damaged, hostile, or have other factors than their config names for this
        model. Unsupported: when the adapter is no plain LoRA, or is stored as a pickle.
    """
    lora = read_config(folder)
    if not (folder / WEIGHTS).exists() and any(p.name.endswith(PICKLED) for p in folder.iterdir()):
        raise Unsupported(
            f"{folder}: expected {WEIGHTS}, got a pickle, which can run any code; save the adapter again with PEFT"
        )
    file = SafetensorsFile(folder / WEIGHTS)
    targets = lora.targets(config)
    outer = _outer(file)
    expected = {outer + name for key in targets for name in _stored_names(key)}
    for name in sorted(expected ^ set(file.entries)):
        problem = "missing" if name in expected else "one that adapter_config.json and the model do not have"
        raise BadWeights(f"{WEIGHTS}: expected the {len(expected)} factors of {CONFIG}, got {name}: {problem}")
    return lora, {key: _pair(file, outer, key, weight, config, lora.rank(key)) for key, weight in targets.items()}


def _outer(file: SafetensorsFile) -> str:
    """Adapters of the bare BloomModel lack `transformer.`"""
    prefixed = any(name.startswith(_OUTER + HF_PREFIX) for name in file.entries)
    return _OUTER + HF_PREFIX if prefixed else _OUTER


def _stored_names(key: str) -> tuple[str, str]:
    module = key.removesuffix(".weight")
    if module == EMBEDDING:
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _pair(
    file: SafetensorsFile, outer: str, key: str, weight: Weight, config: BloomConfig, rank: int
) -> tuple[Array, Array]:
    a, b = _shapes(key, weight, config, rank)
    names = _stored_names(key)
    return _factor(file, outer + names[0], a), _factor(file, outer + names[1], b)


def _shapes(key: str, weight: Weight, config: BloomConfig, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = weight.hf_shape(config)
    if key.startswith(EMBEDDING):  # PEFT's embedding is the transposed linear layer of one-hot vectors
        rows, columns = columns, rows
    return (rank, columns), (rows, rank)


def _factor(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> Array:
    entry = file.entries[name]
    if entry.dtype not in FLOATS or entry.shape != shape:
        raise BadWeights(
            describe(f"{WEIGHTS}: {name}", f"floating numbers of shape {shape}", f"{entry.dtype} {entry.shape}")
        )
    array = file.view(name)
    check_finite(array, name)
    return array.copy()


def save(folder: Path, lora: LoraConfig, pairs: Mapping[str, tuple[Array, Array]]) -> None:
    """Write an adapter that PEFT loads onto a BloomForCausalLM. The folder is complete or not there.

    Raises:
        InvalidInput: when the folder cannot be written.
    """
    with staged_model(folder, True, _STALE) as stage:
        write_safetensors(stage / WEIGHTS, dict(_stored(pairs)))
        write_json(stage / CONFIG, lora.to_json())


def _stored(pairs: Mapping[str, tuple[Array, Array]]) -> Iterator[tuple[str, Array]]:
    for key, pair in sorted(pairs.items()):
        for name, array in zip(_stored_names(key), pair, strict=True):
            yield f"{_OUTER}{HF_PREFIX}{name}", array
