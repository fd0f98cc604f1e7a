"""The weights of a model under its adapters: replaced, shifted, rescaled. Clauses: LRA-19 ... LRA-22.

The factors of linear layers and of the embedding stay apart from the weights and are attached. All else that an adapter
has changes the weights that a backend prepares, so kernels know nothing of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.lora.adapter import Adapter, Parts
from bloomref.params import LM_HEAD, WORD_EMBEDDING, LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array

EMBEDDING, HEAD = WORD_EMBEDDING.hf_key, LM_HEAD.hf_key
Active = Sequence[tuple[Adapter, float]]
"""Adapters, each with its weight in the mix."""


def adapted(base: Params, active: Active, dtype: DType) -> Params:
    """The weights under these adapters, with their factors attached.

    Args:
        base: weights without adapters, in any dtype.
        dtype: of the changed weights, each rounded once.
    """
    parts = mixed_parts(active)
    if any(adapter.changes_weights for adapter, _ in active):
        changed = _ChangedWeights(base.astype(dtype))
        for adapter, _ in active:
            changed.replace(adapter)
        for adapter, weight in active:
            changed.shift(adapter, weight)
        parts = changed.rescale(active)
        base = changed.params(parts.pop(HEAD, ()))
    return lora.attach(base, parts)


def mixed_parts(active: Active) -> Parts:
    """The adapters' factors by weight, scaled by the adapters' weights."""
    parts: Parts = {}
    for adapter, weight in active:
        for key, factors in adapter.parts.items():
            parts[key] = parts.get(key, ()) + tuple(replace(part, scale=weight * part.scale) for part in factors)
    return parts


class _ChangedWeights:
    """Weights by Hugging Face key, each replaced where an adapter changes it. Other arrays are shared."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._arrays = {key: array for key, _, array in params.named()}
        self._dtype = params.word_embedding.dtype
        self._wide = accumulation_dtype(self._dtype)

    def replace(self, adapter: Adapter) -> None:
        """Whole weights (LRA-19) and rows (LRA-20) in the place of the model's."""
        for key, array in adapter.weights.items():
            if key == EMBEDDING and adapter.keeps_head:
                self._untie()
            self._set(key, array)
        rows = dict(adapter.rows)
        if HEAD in rows:
            self._untie()
        for key, array in rows.items():
            matrix = self._arrays[key].copy()
            matrix[list(adapter.token_indices(key))] = cast(array, self._dtype)
            self._arrays[key] = matrix

    def shift(self, adapter: Adapter, weight: float) -> None:
        """b + weight times scale times the bias of B (LRA-22)."""
        for key, shift in adapter.shifts.items():
            bias = f"{key.removesuffix('.weight')}.bias"
            (part,) = adapter.parts[key]
            self._set(bias, self._arrays[bias].astype(self._wide).ravel() + weight * part.scale * shift)

    def rescale(self, active: Active) -> Parts:
        """The mixed factors; weights and B of a matrix under DoRA are scaled by their gains (LRA-21)."""
        parts: Parts = {}
        factor: dict[str, Array] = {}
        for adapter, weight in active:
            for key, factors in adapter.parts.items():
                mixed = tuple(replace(part, scale=weight * part.scale) for part in factors)
                if key in adapter.magnitudes:
                    gain = lora.dora_gain(self._matrix(key), factors[0], adapter.magnitudes[key])
                    mixed = (replace(mixed[0], b=gain[:, None] * factors[0].b),)
                    factor[key] = factor.get(key, np.ones_like(gain)) + weight * gain - weight
                parts[key] = parts.get(key, ()) + mixed
        for key, gain in factor.items():
            self._scale(key, gain)
        return parts

    def params(self, head: Iterable[LoraFactors]) -> Params:
        """The changed weights; the factors of the head are added to it (LRA-22)."""
        if head:
            self._untie()
            wide = self._arrays[HEAD].astype(self._wide)
            for part in head:
                wide += lora.delta_weight(part)
            self._set(HEAD, wide)
        arrays, layers = self._arrays, len(self._params.layers)
        return Params.build(layers, HEAD not in arrays, lambda _, key: arrays[key])

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
        matrix = gain[:, None] * self._matrix(key)
        self._set(key, matrix.T if key == EMBEDDING else matrix)

    def _untie(self) -> None:
        self._arrays.setdefault(HEAD, self._arrays[EMBEDDING])

    def _set(self, key: str, array: Array) -> None:
        shape = self._arrays[key if key in self._arrays else EMBEDDING].shape
        self._arrays[key] = cast(array, self._dtype).reshape(shape)
