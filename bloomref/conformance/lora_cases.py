"""The LoRA adapter of a case: everything follows from a few numbers, and it is handed over as files.

Factors are exact in every dtype, as the weights of a case are, and none is zero: what is added has about the size of what
the weights make.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.representable import snap
from bloomref.formats import keras_lora, peft
from bloomref.formats.keras_lora import Kernels, kernel_shapes
from bloomref.formats.peft import Pairs
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.lora.adapter import Adapter, from_keras, from_peft
from bloomref.shapes import Array

FORMS = ("peft", "keras")
NAME = "kit"
SMALLEST = 2.0**-9
"""Stands for a drawn zero."""


@dataclass(frozen=True)
class Lora:
    """An adapter for whatever model.

    Args:
        targets: names of PEFT's modules (`query_key_value`), or of KerasHub's layers (`value_dense`).
        form: "peft", one A for a whole matrix, or "keras", one for each head of query, key and value (LRA-13).
        rank, alpha, rslora, dropout: as in an adapter_config.json; KerasHub's form has a rank only.
        ranks, alphas: (end of a module's name, its own rank or alpha).
        gain: size of what is added, relative to what the weights make; 0: B is zero.
        copies: the same product of matrices, at so many times the rank: each copy has its part of B.
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
        """What the adapter_config.json says: alpha grows with the copies, so that the scale stays."""
        more = math.sqrt(self.copies) if self.rslora else self.copies
        return LoraConfig(
            r=self.rank * self.copies,
            lora_alpha=self.alpha * more,
            target_modules=self.targets,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            rank_pattern={name: rank * self.copies for name, rank in self.ranks},
            alpha_pattern={name: alpha * more for name, alpha in self.alphas},
        )

    def adapter(self, config: BloomConfig) -> Adapter:
        """On a model of this config, with factors in float64."""
        if self.form == "keras":
            return from_keras(NAME, self._kernels(config), np.dtype(np.float64))
        return from_peft(NAME, self.settings(), self._pairs(config), np.dtype(np.float64))

    def write(self, folder: Path, config: BloomConfig) -> Path:
        """In `folder`, as a folder of PEFT or a `.lora.h5` file of KerasHub, in float32.

        Raises:
            Unsupported: h5py is not installed, and the form is KerasHub's.
        """
        if self.form == "keras":
            path = folder / f"adapter{keras_lora.SUFFIX}"
            keras_lora.save(path, self.rank * self.copies, self._kernels(config))
            return path
        path = folder / "adapter"
        pairs: Pairs = {
            key: (a.astype(np.float32), b.astype(np.float32)) for key, (a, b) in self._pairs(config).items()
        }
        peft.save(path, self.settings(), pairs)
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
        places = [(layer, dense) for layer in range(config.num_layers) for dense in self.targets]
        return {place: self._kernel(config, place[1], index) for index, place in enumerate(places)}

    def _kernel(self, config: BloomConfig, dense: str, index: int) -> tuple[Array, Array]:
        rng, (a, b) = np.random.default_rng([self.seed, index]), kernel_shapes(config, dense, self.rank)
        drawn = _draw(rng, a, a[0] ** -0.5), _draw(rng, b, self.gain / math.sqrt(self.rank))
        return self._copied(*drawn, -1, 0)

    def _copied(self, a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> tuple[Array, Array]:
        return (
            np.concatenate([a] * self.copies, axis=axis_of_a),
            np.concatenate([b] * self.copies, axis=axis_of_b) / self.copies,
        )


def _draw(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> Array:
    values = snap(rng.standard_normal(shape) * size)
    return np.where(values == 0.0, SMALLEST * bool(size), values)
