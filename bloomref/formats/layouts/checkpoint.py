"""Checkpoint in a local folder, in either layout."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from bloomref.config import BloomConfig
from bloomref.dtypes import FLOAT32, POLICIES, DType
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe
from bloomref.formats.arrays import check_fits
from bloomref.formats.files import MAX_CONFIG_BYTES, read_json
from bloomref.formats.folder_contents import QUANTISED_HINT, no_config
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.hf import HfWeights
from bloomref.formats.saved_folder import check_complete
from bloomref.formats.tokenizers.tokenizer_files import tokenizer_files
from bloomref.formats.validation_cache import is_validated, record_validated
from bloomref.params import Params

Layout = Literal["hf", "keras"]


class Weights(Protocol):
    """Open weights of one folder. Names, shapes and dtypes are read at once, the numbers on demand."""

    @property
    def dtype(self) -> DType:
        """Narrowest dtype that represents every stored weight exactly."""
        ...

    def params(self, config: BloomConfig, dtype: DType | None) -> Params:
        """Read the weights for a model of `config`, in `dtype`; None: `self.dtype`."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config.json. Its weights are opened at their first use."""

    folder: Path
    layout: Layout
    config: BloomConfig
    declared_dtype: str | None
    """Stored dtype according to config.json. It counts only if the folder has no weights."""

    @cached_property
    def weights(self) -> Weights:
        """Open weights of the folder."""
        return hf.open_weights(self.folder) if self.layout == "hf" else keras.open_weights(self.folder)

    @property
    def has_weights(self) -> bool:
        """True if the folder has weights in its layout."""
        return hf.exists(self.folder) if self.layout == "hf" else keras.exists(self.folder)

    @property
    def has_lm_head(self) -> bool:
        """True if the LM head is stored, or is the embedding."""
        return self.config.tie_word_embeddings or (isinstance(self.weights, HfWeights) and self.weights.has_lm_head)

    @property
    def dtype(self) -> DType:
        """Narrowest dtype that represents every stored weight exactly. Without weights: the dtype in config.json."""
        if self.has_weights or self.declared_dtype not in POLICIES:
            return self.weights.dtype if self.has_weights else FLOAT32
        return POLICIES[self.declared_dtype].variable_dtype

    @property
    def dtype_name(self) -> str:
        """Name of `dtype`."""
        return self.dtype.name

    @property
    def tokenizer_files(self) -> list[Path]:
        """Files of the folder's tokenizer; empty without a tokenizer."""
        return tokenizer_files(self.folder)

    def params(self, dtype: DType | None = None) -> Params:
        """Read the weights.

        In the Hugging Face layout, arrays in their stored dtype are read-only views of the memory map.

        Args:
            dtype: dtype of the result; None: `self.dtype`.

        Raises:
            BadWeights: when a weight is missing, unknown, of another shape or dtype, damaged or not finite.
            Unsupported: when the weights are quantized, pickled, or need a package that is not installed.
        """
        return self.weights.params(self.config, dtype)

    def stored(self, dtype: DType) -> Params:
        """Return the weights for a caller that rounds them to `dtype` later, a few at a time.

        The Hugging Face layout is memory-mapped, and its weights keep their stored dtype. HDF5 cannot be mapped: in
        the Keras layout the weights are read into memory and rounded to `dtype` here.

        Raises:
            BadWeights: as `params`, and when a number overflows in `dtype`; Unsupported: as `params`.
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
        """Return a checkpoint with the same files and another config."""
        return replace(self, config=config)


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open the checkpoint in a folder. The layout is detected by config.json, as in KerasHub. Clause: PRE-6.

    Raises:
        BadWeights: when config.json is missing, damaged, or describes another model.
        Unsupported: when config.json describes quantized weights.
    """
    folder = Path(folder)
    check_complete(folder)
    if not (folder / hf.CONFIG).exists() and (folder / "adapter_config.json").exists():
        raise BadWeights(
            f"{folder}: expected a model's config.json, got a PEFT adapter; give both: `--adapter {folder} -m BASE`"
        )
    if folder.is_dir() and not (folder / hf.CONFIG).exists():
        raise no_config(folder)
    data = read_json(folder / hf.CONFIG, MAX_CONFIG_BYTES)
    try:
        if keras.describes(data):
            return Checkpoint(folder, "keras", keras.read_config(folder, data), keras.declared_dtype(data))
        return Checkpoint(folder, "hf", _hf_config(data), _hf_dtype(data))
    except InvalidInput as error:
        raise BadWeights(f"{hf.CONFIG}: {error}") from error


def _hf_dtype(data: dict[str, Any]) -> str | None:
    name = data.get("dtype") or data.get("torch_dtype")
    return name if isinstance(name, str) else None


def _hf_config(data: dict[str, Any]) -> BloomConfig:
    if method := data.get("quantization_config"):
        name = method.get("quant_method", method) if isinstance(method, dict) else method
        raise Unsupported(
            describe("config.json: quantization_config", "weights that are not quantised", name, QUANTISED_HINT)
        )
    return BloomConfig.from_hf(data)
