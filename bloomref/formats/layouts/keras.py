"""Keras layout: config.json of a serialized BloomBackbone, and HDF5 weights in one file or in shards."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.errors import BadWeights, Unsupported, describe
from bloomref.formats.arrays import check_finite, common_dtype, is_narrower, rounded
from bloomref.formats.files import into_shards, read_json, write_json
from bloomref.formats.folder_contents import no_weights
from bloomref.formats.keras_h5 import Variable, read_sharded, read_single, write_h5
from bloomref.formats.saved_folder import staged_model
from bloomref.formats.tokenizers.tokenizer_files import keras_dtype, write_keras_tokenizer
from bloomref.params import PROJECTIONS, Params, Weight, count_params, keys
from bloomref.shapes import Array
from bloomref.wider_dtypes import overflow_hint

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
INDEX = "model.weights.json"
TASK_WEIGHTS = "task.weights.h5"
TASK_PREFIX = "layers/bloom_backbone/"
_RIVALS = (WEIGHTS, "task.json", TASK_WEIGHTS)  # read before an index, and by KerasHub's tasks


def exists(folder: Path) -> bool:
    """True if the folder has weights in this layout."""
    return any((folder / name).exists() for name in (WEIGHTS, INDEX, TASK_WEIGHTS))


# --- config.json -------------------------------------------------------------------------------


def describes(data: Mapping[str, Any]) -> bool:
    """True if the contents of a config.json are those of a serialized Keras object. Clause: PRE-6."""
    return "registered_name" in data or "class_name" in data


def read_config(folder: Path, data: Mapping[str, Any]) -> BloomConfig:
    """Read the config of a serialized KerasHub BloomBackbone.

    KerasHub's config has fewer fields than Hugging Face's. bloomref stores the others in metadata.json.

    Args:
        folder: folder of the checkpoint, for metadata.json.
        data: contents of its config.json.

    Raises:
        BadWeights: when config.json describes another object; InvalidInput: when a value is outside its domain.
    """
    name = data.get("registered_name") or data.get("class_name")
    if name not in ("keras_hub>BloomBackbone", "keras_nlp>BloomBackbone", "BloomBackbone"):
        raise BadWeights(describe("config.json: registered_name", "'keras_hub>BloomBackbone'", name))
    if not isinstance(data.get("config"), dict):
        raise BadWeights(describe("config.json: config", "an object", data.get("config")))
    config = BloomConfig.from_keras(data["config"])
    return _with_hf_fields(config, folder / METADATA)


def _with_hf_fields(config: BloomConfig, path: Path) -> BloomConfig:
    if not path.exists():
        return config
    fields = read_json(path).get("hf_config")
    if not isinstance(fields, dict):
        return config
    full = BloomConfig.from_hf(fields)
    return full if full.to_keras() == config.to_keras() else config


def declared_dtype(data: Mapping[str, Any]) -> str | None:
    """Return the name of the dtype policy in a serialized config, or None without one.

    Raises:
        Unsupported: when the policy is that of quantized weights.
    """
    policy = data["config"].get("dtype")
    if isinstance(policy, dict) and policy.get("class_name") not in (None, "DTypePolicy"):
        raise Unsupported(describe("config.json: dtype", "weights that are not quantized", policy["class_name"]))
    config = policy.get("config") if isinstance(policy, dict) else {"name": policy}
    name = config.get("name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _config_json(config: BloomConfig, dtype: DType) -> dict[str, Any]:
    return {
        "module": "keras_hub.src.models.bloom.bloom_backbone",
        "class_name": "BloomBackbone",
        "config": {
            "name": "bloom_backbone",
            "trainable": True,
            "dtype": keras_dtype(dtype.name),
            **config.to_keras(),
        },
        "registered_name": "keras_hub>BloomBackbone",
    }


def _metadata_json(config: BloomConfig) -> dict[str, Any]:
    return {
        "keras_version": None,
        "keras_hub_version": None,
        "parameter_count": count_params(config),
        "tasks": ["CausalLM"],
        "hf_config": config.to_hf(),
    }


# --- variables of a weight ---------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Keras variable that stores a weight, or one of the three parts of the fused projection."""

    path: str
    part: int | None
    """Index on the axis C of the fused projection: 0 query, 1 key, 2 value; None: the whole weight."""

    def select(self, array: Array, weight: Weight) -> Array:
        """View of the weight's array, restricted to the part, with its axes in the order of the variable's axes.

        Axes that the variable stores as one stay separate.
        """
        letters = weight.axes.split()
        if self.part is not None:
            axis = letters.index("C")
            array = array[(slice(None),) * axis + (self.part,)]
            letters.remove("C")
        return array.transpose([letters.index(letter) for letter in _letters(weight)])


def _letters(weight: Weight) -> list[str]:
    return weight.keras_axes.replace(",", "").replace("(", "").replace(")", "").split()


def places(weight: Weight, key: str) -> list[Place]:
    """Keras variables that store the weight with this Hugging Face key: one, or three for the fused projection."""
    group = "layers/"
    if key.startswith("h."):
        number = key.split(".")[1]
        group += f"bloom_decoder{'' if number == '0' else f'_{number}'}/"
    if "{C}" not in weight.keras_path:
        return [Place(group + weight.keras_path, None)]
    return [Place(group + weight.keras_path.format(C=name), part) for part, name in enumerate(PROJECTIONS)]


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class KerasWeights:
    """Open weights of one folder: variable path -> variable."""

    variables: Mapping[str, Variable]

    @property
    def dtype(self) -> DType:
        """Narrowest dtype that represents every stored weight exactly."""
        return common_dtype(variable.dtype for variable in self.variables.values())

    def params(self, config: BloomConfig, dtype: DType | None) -> Params:
        """Read the weights one by one, into arrays with bloomref's axes.

        Args:
            config: config of the model; it decides names and shapes.
            dtype: dtype of the result; None: `self.dtype`.

        Raises:
            BadWeights: naming the variable that is missing, unknown, of another shape, or not finite.
        """
        self._check(config)
        target = self.dtype if dtype is None else dtype
        return Params.build(config.num_layers, True, lambda weight, key: self._read(weight, key, config, target))

    def _read(self, weight: Weight, key: str, config: BloomConfig, dtype: DType) -> Array:
        out = np.empty(weight.shape(config), dtype)
        for place in places(weight, key):
            view = place.select(out, weight)
            variable = self.variables[place.path]
            for rows, values in variable.pieces(by_rows="(" not in weight.keras_axes):
                check_finite(values, variable.path)
                with np.errstate(over="ignore"):
                    view[rows] = rounded(values, dtype).reshape(view[rows].shape)
        if is_narrower(dtype, self.dtype):
            check_finite(out, f"{key} as {dtype.name}", overflow_hint(dtype.name))
        return out

    def _check(self, config: BloomConfig) -> None:
        if config.num_layers > len(self.variables):  # refuse a hostile number of layers before enumerating its names
            raise BadWeights(describe("weights", f"{config.num_layers} layers", f"{len(self.variables)} variables"))
        shapes = {
            place.path: weight.keras_shape(config) for key, weight in keys(config) for place in places(weight, key)
        }
        missing, unknown = shapes.keys() - self.variables.keys(), self.variables.keys() - shapes.keys()
        if missing or unknown:
            parts = [f"missing {min(missing)}" if missing else "", f"unknown {min(unknown)}" if unknown else ""]
            raise BadWeights(
                f"weights: expected the {len(shapes)} variables that config.json needs; {'; '.join(filter(None, parts))}"
            )
        for path, shape in shapes.items():
            if self.variables[path].shape != shape:
                raise BadWeights(describe(f"{path}: shape", str(shape), str(self.variables[path].shape)))


def open_weights(folder: Path) -> KerasWeights:
    """Open the weights of the backbone, in one file or in shards, or else those of a KerasHub task.

    Raises:
        BadWeights: when files are missing, damaged, hostile, or disagree with their index.
        Unsupported: when weights are quantized, or h5py is not installed.
    """
    if (folder / WEIGHTS).exists():
        return _of_layers(read_single(folder / WEIGHTS))
    if (folder / INDEX).exists():
        return _of_layers(read_sharded(folder / INDEX))
    if (folder / TASK_WEIGHTS).exists():
        return _of_layers(read_single(folder / TASK_WEIGHTS, TASK_PREFIX))
    raise no_weights(folder, f"{WEIGHTS}, {INDEX} or {TASK_WEIGHTS}")


def _of_layers(variables: Mapping[str, Variable]) -> KerasWeights:
    """The variables of layers. Keras looks for no others, and so they are ignored (WGT-15)."""
    return KerasWeights({path: variable for path, variable in variables.items() if path.startswith("layers/")})


# --- writing -----------------------------------------------------------------------------------


def save(
    folder: Path | str,
    config: BloomConfig,
    params: Params,
    *,
    tokenizer_from: Path | None = None,
    max_shard_bytes: int = 10_000_000_000,
    overwrite: bool = True,
) -> None:
    """Write a folder that KerasHub's BloomBackbone loads. The weights keep their dtype and bits.

    The arguments are those of `formats.layouts.hf.save`.

    Raises:
        InvalidInput: when the folder cannot be written, or Keras cannot represent the model.
        BadWeights: when the tokenizer's files are damaged. Unsupported: when h5py is not installed.
    """
    data = _config_json(config, params.word_embedding.dtype)
    with staged_model(Path(folder), CONFIG, overwrite, _RIVALS) as stage:
        _write_weights(stage, config, params, max_shard_bytes)
        if tokenizer_from is not None:
            write_keras_tokenizer(Path(tokenizer_from), stage)
        write_json(stage / METADATA, _metadata_json(config))
        write_json(stage / CONFIG, data)


def _write_weights(stage: Path, config: BloomConfig, params: Params, max_shard_bytes: int) -> None:
    shards = into_shards(_stored(params), max_shard_bytes)
    shapes = {place.path: weight.keras_shape(config) for key, weight in keys(config) for place in places(weight, key)}
    if len(shards) == 1:
        write_h5(stage / WEIGHTS, shards[0], shapes)
        return
    placed: dict[str, list[str]] = {}
    for number, shard in enumerate(shards):
        name = f"model_{number:05}.weights.h5"
        write_h5(stage / name, shard, shapes)
        for variable in shard:
            files = placed.setdefault("/" + variable.rpartition("/")[0], [])
            files.extend([name] * (name not in files))
    total = sum(array.nbytes for shard in shards for array in shard.values())
    write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})


def _stored(params: Params) -> Iterator[tuple[str, Array]]:
    """Yield (variable path, view of the weight with its axes in the variable's order)."""
    for key, weight, array in params.named():
        for place in places(weight, key):
            yield place.path, place.select(array, weight)
