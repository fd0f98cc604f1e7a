"""Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors. Clause: LRA-10."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, describe
from bloomref.formats.arrays import check_finite
from bloomref.formats.files import MAX_CONFIG_BYTES, read_json, write_json
from bloomref.formats.folder_contents import no_weights
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.formats.safetensors_io import FLOATS, SafetensorsFile, write_safetensors
from bloomref.formats.saved_folder import check_complete, staged_model
from bloomref.params import HF_PREFIX, Weight
from bloomref.shapes import Array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_OUTER = "base_model.model."

Pairs = dict[str, tuple[Array, Array]]
"""Hugging Face key of a weight (without `transformer.`) -> A (R, N), B (M, R) of the stored matrix (M, N)."""


def exists(folder: Path) -> bool:
    """True if the folder has a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> LoraConfig:
    """Read the config of the folder's adapter.

    Raises:
        BadWeights: when the config is missing or damaged; Unsupported: when the adapter is not plain LoRA (LRA-18).
    """
    check_complete(folder)
    return LoraConfig.from_json(read_json(folder / CONFIG, MAX_CONFIG_BYTES))


def read(folder: Path, config: BloomConfig) -> tuple[LoraConfig, Pairs]:
    """Read an adapter for a model of `config`. The factors are copies, in their stored dtype.

    Raises:
        BadWeights: when files are missing, damaged or hostile, or their factors do not match config and model.
        Unsupported: when the adapter is not plain LoRA (LRA-18), or is stored as a pickle.
    """
    lora = read_config(folder)
    if not (folder / WEIGHTS).exists():
        raise no_weights(folder, WEIGHTS)
    file = SafetensorsFile(folder / WEIGHTS)
    targets = lora.targets(config)
    outer = _outer(file)
    expected = {outer + name for key in targets for name in _stored_names(key)}
    for name in sorted(expected ^ set(file.entries)):
        problem = "missing" if name in expected else "not named by adapter_config.json for this model"
        raise BadWeights(f"{WEIGHTS}: expected the {len(expected)} factors of {CONFIG}, got {name}: {problem}")
    return lora, {key: _pair(file, outer, key, weight, config, lora.rank(key)) for key, weight in targets.items()}


def _outer(file: SafetensorsFile) -> str:
    """Prefix of the stored names. Adapters of a bare BloomModel have no `transformer.` in it."""
    prefixed = any(name.startswith(_OUTER + HF_PREFIX) for name in file.entries)
    return _OUTER + HF_PREFIX if prefixed else _OUTER


def factor_name(name: str) -> str:
    """Name of a factor in a file for a BloomForCausalLM: `name` has no prefix."""
    return f"{_OUTER}{HF_PREFIX}{name}"


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
    if key.startswith(EMBEDDING):  # PEFT treats the embedding as a transposed linear layer of one-hot vectors
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


def save(folder: Path, lora: LoraConfig, pairs: Mapping[str, tuple[Array, Array]], overwrite: bool = True) -> None:
    """Write an adapter folder that PEFT loads for a BloomForCausalLM. An error leaves the folder unchanged.

    Args:
        folder: the folder to write.
        lora: config of the adapter.
        pairs: Hugging Face key of a weight (without `transformer.`) -> factors (A, B), in PEFT's shapes.
        overwrite: replace the adapter in the folder; False: refuse a folder that has any files (WGT-20).

    Raises:
        InvalidInput: when the folder cannot be written.
    """
    with staged_model(folder, CONFIG, overwrite) as stage:
        write_safetensors(stage / WEIGHTS, dict(_stored(pairs)))
        write_json(stage / CONFIG, lora.to_json())


def _stored(pairs: Mapping[str, tuple[Array, Array]]) -> Iterator[tuple[str, Array]]:
    for key, pair in sorted(pairs.items()):
        for name, array in zip(_stored_names(key), pair, strict=True):
            yield factor_name(name), array
