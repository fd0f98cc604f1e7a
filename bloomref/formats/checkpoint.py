"""A checkpoint in a local folder, whatever its layout."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from bloomref.config import BloomConfig
from bloomref.dtypes import FLOAT32, POLICIES, DType
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe
from bloomref.formats import hf, keras
from bloomref.formats.arrays import check_fits
from bloomref.formats.files import read_json
from bloomref.formats.tokenizer_files import tokenizer_files
from bloomref.formats.validation_cache import is_validated, record_validated
from bloomref.params import Params

Layout = Literal["hf", "keras"]


class Weights(Protocol):
    """The open weights of one folder; only their descriptions are read so far."""

    @property
    def dtype(self) -> DType: ...

    def params(self, config: BloomConfig, dtype: DType | None) -> Params: ...


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config.json. Its weights are opened when they are first asked for."""

    folder: Path
    layout: Layout
    config: BloomConfig
    declared_dtype: str | None
    """Stored dtype according to config.json. Where the weights are present, their dtype counts."""

    @cached_property
    def weights(self) -> Weights:
        return hf.open_weights(self.folder) if self.layout == "hf" else keras.open_weights(self.folder)

    @property
    def has_weights(self) -> bool:
        return hf.exists(self.folder) if self.layout == "hf" else keras.exists(self.folder)

    @property
    def dtype(self) -> DType:
        """The narrowest dtype that holds every stored weight exactly; without weights, what config.json declares."""
        if self.has_weights or self.declared_dtype not in POLICIES:
            return self.weights.dtype if self.has_weights else FLOAT32
        return POLICIES[self.declared_dtype].variable_dtype

    @property
    def dtype_name(self) -> str:
        return self.dtype.name

    @property
    def tokenizer_files(self) -> list[Path]:
        """The files of the folder's tokenizer; empty when it has none."""
        return tokenizer_files(self.folder)

    def params(self, dtype: DType | None = None) -> Params:
        """The weights in `dtype`, or as stored.

        Where the dtype is the stored one, arrays of the Hugging Face layout are read-only views of the memory map.

        Raises:
            BadWeights: when a weight is missing, unknown, of another shape or dtype, damaged or not finite.
            Unsupported: when the weights are quantized, pickled, or need a package that is not installed.
        """
        return self.weights.params(self.config, dtype)

    def stored(self, dtype: DType) -> Params:
        """The weights for whoever rounds them to `dtype` itself, a few at a time: as stored, where they can be mapped.

        HDF5 has no map: in the Keras layout they are read into memory, in `dtype`.

        Raises:
            BadWeights: as `params`, a number that is not finite in `dtype` included; Unsupported: as `params`.
        """
        if self.layout == "keras":
            return self.params(dtype)
        params = self.params()
        if not is_validated(params.source, dtype.name):
            for key, _, array in params.named():
                check_fits(array, dtype, key)
            record_validated(params.source, dtype.name, sum(array.nbytes for _, _, array in params.named()))
        return params

    def replace_config(self, config: BloomConfig) -> "Checkpoint":
        """The same files, read as a model of another config."""
        return replace(self, config=config)


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read a folder's config.json, and decide by it, as KerasHub does, which layout the folder has.

    Raises:
        BadWeights: when config.json is missing, damaged, or describes another model.
        Unsupported: when it describes quantized weights.
    """
    folder = Path(folder)
    if not (folder / hf.CONFIG).exists() and (folder / "adapter_config.json").exists():
        raise BadWeights(f"{folder}: expected a model's config.json, got a PEFT adapter; load its base model first")
    data = read_json(folder / hf.CONFIG)
    try:
        if keras.describes(data):
            return Checkpoint(folder, "keras", keras.read_config(folder, data), keras.declared_dtype(data))
        return Checkpoint(folder, "hf", _hf_config(data), _hf_dtype(data))
    except InvalidInput as error:
        raise BadWeights(f"{hf.CONFIG}: {error}") from error


def _hf_dtype(data: dict[str, Any]) -> str | None:
    name = data.get("dtype", data.get("torch_dtype"))
    return name if isinstance(name, str) else None


def _hf_config(data: dict[str, Any]) -> BloomConfig:
    if "quantization_config" in data:
        method = data["quantization_config"]
        name = method.get("quant_method", method) if isinstance(method, dict) else method
        raise Unsupported(describe("config.json: quantization_config", "weights that are not quantized", name))
    return BloomConfig.from_hf(data)
