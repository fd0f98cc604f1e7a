"""Trainable variables of an adapter by name, and the gradients by them. Clauses: LRA-15, LRA-26.

Backends compute gradients by the weights and factors that a model runs on. What an adapter replaces, shifts or
rescales is a function of its variables; here the chain rule leads from the one to the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bloomref.dtypes import DType, cast
from bloomref.lora.adapted_weights import EMBEDDING, HEAD, ChangedWeights
from bloomref.lora.adapter import Adapter
from bloomref.params import LoraFactors
from bloomref.shapes import Array

Gradients = Mapping[str, Array]
"""Hugging Face key of a weight, or name of a factor -> gradient by it."""
_NAMES = {
    "weights": "{module}.modules_to_save.{name}.{part}",
    "rows": "{module}.token_adapter.trainable_tokens_delta.{name}",
    "magnitudes": "{module}.lora_magnitude_vector.{name}.weight",
    "shifts": "{module}.lora_B.{name}.bias",
}
"""Field of `Adapter` -> name of a variable, as PEFT names it."""


def variables(name: str, adapter: Adapter) -> dict[str, Array]:
    """Name of a variable -> array: what PEFT trains of an adapter of this name."""
    factors = {part.key(key, n): getattr(part, n) for key, part in _parts(adapter) for n in ("a", "b")}
    return factors | {variable: getattr(adapter, kind)[key] for variable, kind, key in _others(name, adapter)}


def with_variables(name: str, adapter: Adapter, arrays: Mapping[str, Array], dtype: DType) -> Adapter:
    """The adapter with copies of these arrays, under the names of `variables`; other variables stay."""

    def changed(key: str, part: LoraFactors) -> LoraFactors:
        a, b = (arrays.get(part.key(key, n), getattr(part, n)) for n in ("a", "b"))
        return replace(part, a=cast(a, dtype).copy(), b=cast(b, dtype).copy())  # the caller may go on changing its own

    fields: dict[str, Any] = {kind: dict(getattr(adapter, kind)) for kind in _NAMES}
    for variable, kind, key in _others(name, adapter):
        if variable in arrays:
            fields[kind][key] = cast(arrays[variable], dtype).copy()
    parts = {key: tuple(changed(key, part) for part in parts) for key, parts in adapter.parts.items()}
    return replace(adapter, parts=parts, **fields)


def sources(name: str, adapter: Adapter) -> Iterator[str]:
    """Keys and names of the gradients from which `gradients` computes."""
    for key, part in _parts(adapter):
        if key == HEAD or key in adapter.magnitudes:
            yield key
        if key != HEAD:
            yield from (part.key(key, n) for n in ("a", "b"))
    yield from (_bias(key) for key in adapter.shifts)
    yield from (key for _, kind, key in _others(name, adapter) if kind in ("weights", "rows"))


def gradients(name: str, adapter: Adapter, weight: float, changed: ChangedWeights, of: Gradients) -> dict[str, Array]:
    """Gradients by the variables of one adapter.

    Args:
        name: of the adapter.
        weight: of the adapter in the mix.
        changed: the weights that the model runs on, and what they were computed from.
        of: gradients by these weights and factors, for the names of `sources`.
    """
    result: dict[str, Array] = {}
    for key, part in _parts(adapter):
        if key == HEAD:
            result |= _of_head(part, weight, changed.gain(name, key), of[key])
        else:
            gain = changed.gain(name, key)
            result[part.key(key, "a")] = of[part.key(key, "a")]
            result[part.key(key, "b")] = (
                of[part.key(key, "b")] if gain is None else gain[:, None] * of[part.key(key, "b")]
            )
    for variable, kind, key in _others(name, adapter):
        if kind == "weights":
            result[variable] = of[key].reshape(adapter.weights[key].shape)
        elif kind == "rows":
            result[variable] = of[key][list(adapter.token_indices(key))]
        elif kind == "shifts":
            result[variable] = weight * adapter.parts[key][0].scale * of[_bias(key)].ravel()
        else:
            result[variable] = _of_magnitude(name, adapter, key, weight, changed, of)
    return result


def _of_head(part: LoraFactors, weight: float, gain: Array | None, of_head: Array) -> dict[str, Array]:
    """H + weight times scale times g B A is one matrix here, not a sum of products."""
    inner = weight * part.scale * (of_head if gain is None else gain[:, None] * of_head)
    return {part.key(HEAD, "a"): part.b.T @ inner, part.key(HEAD, "b"): inner @ part.a.T}


def _of_magnitude(
    name: str, adapter: Adapter, key: str, weight: float, changed: ChangedWeights, of: Gradients
) -> Array:
    """By m, where g = m / n, the weight is (1 + w (g - 1)) W, the factors are A and g B. As in DoRA, n is fixed."""
    (part,), plain = adapter.parts[key], changed.plain[key]
    of_weight = of[key].T if key == EMBEDDING else of[key].reshape(plain.shape)
    by_gain = weight * (of_weight * plain).sum(axis=1)
    if key == HEAD:
        by_gain += weight * part.scale * (of_weight * (part.b @ part.a)).sum(axis=1)
    else:
        by_gain += (of[part.key(key, "b")] * part.b).sum(axis=1)
    gain = changed.gain(name, key)
    assert gain is not None
    norms = adapter.magnitudes[key] / gain
    return np.asarray(by_gain / norms)


def _parts(adapter: Adapter) -> Iterator[tuple[str, LoraFactors]]:
    for key, parts in adapter.parts.items():
        yield from ((key, part) for part in parts)


def _others(name: str, adapter: Adapter) -> Iterator[tuple[str, str, str]]:
    """(name of a variable, field of the adapter, Hugging Face key)."""
    for kind, template in _NAMES.items():
        for key in getattr(adapter, kind):
            if kind != "weights" or adapter.trains(key):
                module, _, part = key.rpartition(".")
                yield template.format(module=module, name=name, part=part), kind, key


def _bias(key: str) -> str:
    return f"{key.removesuffix('.weight')}.bias"
