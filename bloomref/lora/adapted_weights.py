"""The weights of a model under its adapters: replaced, shifted, rescaled. Clauses: LRA-19 ... LRA-22.

The factors of linear layers and of the embedding stay apart from the weights and are attached. All else that an adapter
has changes the weights that a backend prepares, so kernels know nothing of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.lora.adapter import Adapter, Parts
from bloomref.params import LM_HEAD, WORD_EMBEDDING, LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array

EMBEDDING, HEAD = WORD_EMBEDDING.hf_key, LM_HEAD.hf_key
Active = Sequence[tuple[str, Adapter, float]]
"""Active adapters: name, adapter, weight in the mix."""


def adapted(base: Params, active: Active, dtype: DType) -> Params:
    """The weights under these adapters, with their factors attached.

    Args:
        base: weights without adapters, in any dtype.
        dtype: of the changed weights, each rounded once.
    """
    if any(adapter.changes_weights for _, adapter, _ in active):
        return ChangedWeights(base.astype(dtype), active).params()
    return lora.attach(base, mixed_parts(active))


def mixed_parts(active: Active) -> Parts:
    """The adapters' factors by weight, scaled by the adapters' weights."""
    parts: Parts = {}
    for _, adapter, weight in active:
        for key, factors in adapter.parts.items():
            parts[key] = parts.get(key, ()) + tuple(replace(part, scale=weight * part.scale) for part in factors)
    return parts


class ChangedWeights:
    """Weights by Hugging Face key, each replaced where an adapter changes it. Other arrays are shared.

    Args:
        base: weights without adapters, in the dtype of the changed ones.

    Attributes:
        plain: key of a weight under DoRA -> the weight before it, as PEFT's linear layers have it.
    """

    def __init__(self, base: Params, active: Active) -> None:
        self._layers = len(base.layers)
        self._arrays = {key: array for key, _, array in base.named()}
        self._dtype = base.word_embedding.dtype
        self._wide = accumulation_dtype(self._dtype)
        self.plain: dict[str, Array] = {}
        self._gains: dict[tuple[str, str], Array] = {}
        for _, adapter, _ in active:
            self._replace(adapter)
        for _, adapter, weight in active:
            self._shift(adapter, weight)
        self._parts = self._rescale(active)
        if head := self._parts.pop(HEAD, ()):
            self._add_to_head(head)

    def params(self) -> Params:
        """The changed weights, with the factors of linear layers and of the embedding attached."""
        arrays = self._arrays
        changed = Params.build(self._layers, HEAD not in arrays, lambda _, key: arrays[key])
        return lora.attach(changed, self._parts)

    def gain(self, name: str, key: str) -> Array | None:
        """Gains of a weight under DoRA by the adapter of that name; None: it has none."""
        return self._gains.get((name, key))

    def _replace(self, adapter: Adapter) -> None:
        """Whole weights (LRA-19) and rows (LRA-20) in the place of the model's."""
        for key, array in adapter.weights.items():
            if key == EMBEDDING and adapter.keeps_head:
                self._untie()
            self._set(key, array)
        if HEAD in adapter.rows:
            self._untie()
        for key, array in adapter.rows.items():
            matrix = self._arrays[key].copy()
            matrix[list(adapter.token_indices(key))] = cast(array, self._dtype)
            self._arrays[key] = matrix

    def _shift(self, adapter: Adapter, weight: float) -> None:
        """b + weight times scale times the bias of B (LRA-22)."""
        for key, shift in adapter.shifts.items():
            bias = f"{key.removesuffix('.weight')}.bias"
            (part,) = adapter.parts[key]
            self._set(bias, self._arrays[bias].astype(self._wide).ravel() + weight * part.scale * shift)

    def _rescale(self, active: Active) -> Parts:
        """The mixed factors; weights and B of a matrix under DoRA are scaled by their gains (LRA-21)."""
        parts: Parts = {}
        factor: dict[str, Array] = {}
        for name, adapter, weight in active:
            for key, factors in adapter.parts.items():
                mixed = tuple(replace(part, scale=weight * part.scale) for part in factors)
                if key in adapter.magnitudes:
                    self.plain.setdefault(key, self._matrix(key))
                    gain = lora.dora_gain(self.plain[key], factors[0], adapter.magnitudes[key])
                    self._gains[name, key] = gain
                    mixed = (replace(mixed[0], b=gain[:, None] * factors[0].b),)
                    factor[key] = factor.get(key, np.ones_like(gain)) + weight * gain - weight
                parts[key] = parts.get(key, ()) + mixed
        for key, gain in factor.items():
            self._scale(key, gain)
        return parts

    def _add_to_head(self, parts: tuple[LoraFactors, ...]) -> None:
        """The factors of the head are added to it (LRA-22)."""
        self._untie()
        wide = self._arrays[HEAD].astype(self._wide)
        for part in parts:
            wide += lora.delta_weight(part)
        self._set(HEAD, wide)

    def _matrix(self, key: str) -> Array:
        """A weight as PEFT's linear layers have it, (M, N), in the accumulation dtype: the embedding is transposed."""
        array = self._arrays[EMBEDDING if key == HEAD and HEAD not in self._arrays else key].astype(self._wide)
        if key == EMBEDDING:
            return array.T
        rows = self._arrays[f"{key.removesuffix('.weight')}.bias"].size if key != HEAD else len(array)
        return array.reshape(rows, -1)

    def _scale(self, key: str, gain: Array) -> None:
        if key in (EMBEDDING, HEAD):
            self._untie()
        matrix = gain[:, None] * self.plain[key]
        self._set(key, matrix.T if key == EMBEDDING else matrix)

    def _untie(self) -> None:
        self._arrays.setdefault(HEAD, self._arrays[EMBEDDING])

    def _set(self, key: str, array: Array) -> None:
        shape = self._arrays[key if key in self._arrays else EMBEDDING].shape
        self._arrays[key] = cast(array, self._dtype).reshape(shape)
