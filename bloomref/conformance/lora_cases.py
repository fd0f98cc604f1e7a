"""The LoRA adapter of a case: a few parameters determine it, and the implementation reads it from files.

Factors are exact in every dtype, like the weights of a case, and no element is zero. The low-rank product is about as
large as the product with the weights.
"""

import math
import shutil
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.representable import snap
from bloomref.formats.adapters import keras_lora, peft
from bloomref.formats.adapters.keras_lora import Kernels, kernel_shapes
from bloomref.formats.adapters.peft import Pairs, PeftTensors
from bloomref.formats.adapters.peft_config import EMBEDDING, LoraConfig
from bloomref.lora import adapter_files
from bloomref.lora.adapter import Adapter, from_keras, from_peft
from bloomref.shapes import Array

FORMS = ("peft", "keras")
NAME = "kit"
SMALLEST = 2.0**-9
"""Replaces a drawn zero."""


@dataclass(frozen=True)
class Lora:
    """Parameters of a LoRA adapter, for any model.

    Args:
        targets: names of PEFT modules (`query_key_value`) or of KerasHub layers (`value_dense`).
        form: "peft": one A for a whole matrix; "keras": one A for each head of query, key and value (LRA-13).
        rank, alpha, rslora, dropout: as in an adapter_config.json; the form "keras" uses the rank only.
        ranks, alphas: pairs (end of a module's name, its rank or alpha), as rank_pattern and alpha_pattern of PEFT.
        seed: seed of the factors.
        gain: size of the low-rank product relative to the product with the weights; 0 sets B to zero.
        copies: repeats the factors: the same product of matrices at a multiple of the rank.
    """

    targets: tuple[str, ...] = ("query_key_value",)
    form: str = "peft"
    rank: int = 4
    alpha: float = 8.0
    rslora: bool = False
    dropout: float = 0.0
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    gain: float = 1.0
    copies: int = 1

    def settings(self) -> LoraConfig:
        """Return the adapter_config.json. Alpha grows with the copies, so that the scale does not change."""
        factor = math.sqrt(self.copies) if self.rslora else self.copies
        return LoraConfig(
            r=self.rank * self.copies,
            lora_alpha=self.alpha * factor,
            target_modules=self.targets,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            rank_pattern={name: rank * self.copies for name, rank in self.ranks},
            alpha_pattern={name: alpha * factor for name, alpha in self.alphas},
        )

    def adapter(self, config: BloomConfig) -> Adapter:
        """Return the adapter for a model of this config, with factors in float64."""
        if self.form == "keras":
            return from_keras(NAME, self._kernels(config), np.dtype(np.float64))
        return from_peft(NAME, self.settings(), PeftTensors(self._pairs(config)), np.dtype(np.float64))

    def write(self, folder: Path, config: BloomConfig) -> Path:
        """Write the adapter to `folder`, in float32: a PEFT folder, or a `.lora.h5` file of KerasHub. Return the path.

        Raises:
            Unsupported: the form is "keras", and h5py is not installed.
        """
        if self.form == "keras":
            path = folder / f"adapter{keras_lora.SUFFIX}"
            keras_lora.save(path, self.rank * self.copies, self._kernels(config))
            return path
        path = folder / "adapter"
        pairs: Pairs = {
            key: (a.astype(np.float32), b.astype(np.float32)) for key, (a, b) in self._pairs(config).items()
        }
        peft.save(path, self.settings(), PeftTensors(pairs))
        return path

    def _pairs(self, config: BloomConfig) -> Pairs:
        settings = self.settings()
        pairs: Pairs = {}
        for index, (key, weight) in enumerate(settings.targets(config).items()):
            rows, columns = weight.hf_shape(config)
            rank, rng = settings.rank(key) // self.copies, np.random.default_rng([self.seed, index])
            size = self.gain / (math.sqrt(rank) * abs(settings.scale(key)))
            if key.startswith(EMBEDDING):
                a, b = _draw(rng, (rank, rows), 1.0), _draw(rng, (columns, rank), size)
            else:
                a, b = _draw(rng, (rank, columns), columns**-0.5), _draw(rng, (rows, rank), size)
            pairs[key] = self._copied(a, b, 0, 1)
        return pairs

    def _kernels(self, config: BloomConfig) -> Kernels:
        layers = [(index, dense) for index in range(config.num_layers) for dense in self.targets]
        return {layer: self._kernel(config, layer[1], number) for number, layer in enumerate(layers)}

    def _kernel(self, config: BloomConfig, dense: str, index: int) -> tuple[Array, Array]:
        rng, (a, b) = np.random.default_rng([self.seed, index]), kernel_shapes(config, dense, self.rank)
        drawn = _draw(rng, a, a[0] ** -0.5), _draw(rng, b, self.gain / math.sqrt(self.rank))
        return self._copied(*drawn, -1, 0)

    def _copied(self, a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> tuple[Array, Array]:
        return (
            np.concatenate([a] * self.copies, axis=axis_of_a),
            np.concatenate([b] * self.copies, axis=axis_of_b) / self.copies,
        )


@dataclass(frozen=True)
class StoredLora(Lora):
    """An adapter in a PEFT folder or a `.lora.h5` file. Equal to another one if the path and all bytes are.

    Args:
        path: the folder or file.
    """

    path: Path = Path()
    digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = blake2b(digest_size=16)
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        object.__setattr__(self, "digest", digest.hexdigest())
        object.__setattr__(self, "form", "peft" if self.path.is_dir() else "keras")

    def adapter(self, config: BloomConfig) -> Adapter:
        return adapter_files.load(self.path, NAME, config, np.dtype(np.float64))

    def write(self, folder: Path, config: BloomConfig) -> Path:  # noqa: ARG002
        copy = folder / ("adapter" if self.path.is_dir() else f"adapter{keras_lora.SUFFIX}")
        (shutil.copytree if self.path.is_dir() else shutil.copyfile)(self.path, copy)
        return copy


def _draw(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> Array:
    values = snap(rng.standard_normal(shape) * size)
    return np.where(values == 0.0, SMALLEST * bool(size), values)
