"""Adapter of an instrumented model: the kit asks a known mistake as it asks any implementation."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bloomref import __version__
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.gradient_names import named
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import FORMS, NAME
from bloomref.conformance.model.instrumented import EXACT, Arithmetic, InstrumentedModel
from bloomref.dtypes import DType, cast, floating_dtype
from bloomref.lora import adapter_files
from bloomref.lora.adapter import Adapter
from bloomref.runtime.backend import Choice
from bloomref.runtime.inputs import check_labels
from bloomref.shapes import Array, Bool, Float, Int


@dataclass(frozen=True)
class Rounding(Arithmetic):
    """Round every stored result to a 16-bit type; sums, norms and scores stay in float32."""

    dtype: DType

    def stored(self, x: Array) -> Array:
        return cast(x, self.dtype).astype(x.dtype)


class InstrumentedImplementation:
    """An instrumented model class as an implementation, in any dtype: `InstrumentedImplementation(WrongSlopes)`."""

    capabilities = Capabilities(dtypes=("float32", "bfloat16", "float16", "float64"), adapters=FORMS)

    def __init__(self, model_class: type[InstrumentedModel] = InstrumentedModel) -> None:
        self.model_class = model_class
        self.name = model_class.__name__

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "LoadedInstrumentedModel":
        storage = floating_dtype(dtype)
        narrow = storage.itemsize < 4
        params = params_of(config, weights).astype(storage)
        arithmetic = Rounding(storage) if narrow else EXACT
        build = partial(self.model_class, config, params, arithmetic, np.float32 if narrow else storage)
        return LoadedInstrumentedModel(build(), build, storage)

    def versions(self) -> Mapping[str, str]:
        return {"bloomref": __version__}


class LoadedInstrumentedModel:
    """A loaded instrumented model.

    Args:
        model: the model.
        build: builds the same model with an adapter.
        storage: dtype of the weights.
        apart: of a merged model: the model with its adapter apart.
    """

    def __init__(
        self,
        model: InstrumentedModel,
        build: Callable[[Adapter], InstrumentedModel],
        storage: DType,
        apart: InstrumentedModel | None = None,
    ) -> None:
        self.model, self.build, self.storage, self.apart = model, build, storage, apart

    def adapted(self, path: Path) -> "LoadedInstrumentedModel":
        """Return the same model with the adapter of a folder or file."""
        adapter = adapter_files.load(path, NAME, self.model.config, np.dtype(np.float64))
        return LoadedInstrumentedModel(self.build(adapter), self.build, self.storage)

    def merge(self) -> "LoadedInstrumentedModel":
        """Return the model whose weights include the adapter."""
        return LoadedInstrumentedModel(self.model.merged(self.storage), self.build, self.storage, self.model)

    def unmerge(self) -> "LoadedInstrumentedModel":
        """Return the model from before `merge`."""
        assert self.apart is not None
        return LoadedInstrumentedModel(self.apart.unmerged(self.model, self.storage), self.build, self.storage)

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.model.run(token_ids, is_real)["logits"]

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.model.run(token_ids, is_real)["final_norm"]

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Mapping[str, Array]:
        return self.model.run(token_ids, is_real)

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> Float[Array, "B T V"]:
        return self.model.run(token_ids, is_real, cuts, capacity)["logits"]

    def trace_in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> Mapping[str, Array]:
        return self.model.run(token_ids, is_real, cuts, capacity)

    def loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, Mapping[str, Array]]:
        """Compute in the accumulation dtype, without rounding in between (GRD-5)."""
        labels = check_labels(labels, token_ids.shape, self.model.config.vocabulary_size)
        model = copy(self.model)
        model.arithmetic = EXACT
        loss, gradients = model.loss_and_gradients(token_ids, is_real, labels)
        form = "peft" if model.adapter is None or model.adapter.config else "keras"
        return loss, named(model.config, gradients, form)

    def step(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], start: int, capacity: int
    ) -> Float[Array, "B _ V"]:
        return self.model.steps(token_ids, is_real, start, capacity)

    def tokens(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        return self.model.tokens(token_ids, is_real, choice, count)

    def call(self, token_ids: Any, padding_mask: Any) -> Float[Array, "B T V"]:
        return self.logits(*self.model.accept(token_ids, padding_mask))
