"""bloomref itself, on one of its backends: `--backend numpy`."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any, Self

import numpy as np

from bloomref import __version__
from bloomref.backbone import BloomBackbone
from bloomref.causal_lm import BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.conformance.adapters import engine_decoding
from bloomref.conformance.adapters.common import params_of, versions_of
from bloomref.conformance.adapters.exact_answers import ANSWERS, generate
from bloomref.conformance.gradient_names import named
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import FORMS
from bloomref.conformance.model.pieces import join
from bloomref.dtypes import DTypePolicy, dtype_policy
from bloomref.errors import Unsupported
from bloomref.runtime import backend as interface
from bloomref.runtime import registry
from bloomref.runtime.backend import (
    Choice,
    Declaration,
    Prepared,
    SupportsDeclaration,
    SupportsGradients,
    SupportsRecording,
    SupportsTrace,
)
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.runtime.inputs import TokenBatch, check_labels
from bloomref.shapes import Array, Bool, Float, Int

TINY = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=24)
"""The config that a backend without a declaration is asked about."""


class Backend:
    """A backend, by its name in `bloomref backends`."""

    answers = ANSWERS
    error_classes = True

    def __init__(self, name: str = registry.REFERENCE) -> None:
        self.name = name

    @property
    def runs_on(self) -> interface.Backend:
        """The backend itself.

        Raises:
            InvalidInput: no backend has this name; Unsupported: it is not installed.
        """
        return registry.load(self.name)

    @property
    def declaration(self) -> Declaration:
        """The backend's declaration. Of a backend without one: the dtypes that it does not refuse.

        Raises:
            InvalidInput: no backend has this name.
        """
        try:
            backend = registry.load(self.name)
        except Unsupported:  # `load` raises it again, with the reason
            return Declaration()
        return backend.declaration if isinstance(backend, SupportsDeclaration) else _asked(backend)

    @cached_property
    def capabilities(self) -> Capabilities:
        declared = self.declaration
        return Capabilities(
            dtypes=declared.dtypes,
            scores=declared.scores,
            products=declared.products,
            gradients=declared.gradients,
            repeatable=declared.repeatable,
            adapters=FORMS,
        )

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "BackendModel":
        """Load a model on the backend.

        Raises:
            Unsupported: the backend is not installed, or cannot run this model here.
            InvalidInput: no backend has this name.
        """
        return BackendModel(BloomBackbone.from_params(config, params_of(config, weights), dtype, backend=self.name))

    def load_folder(self, folder: Path, dtype: str) -> "BackendModel":
        """Load a model folder on the backend.

        Raises:
            BadWeights: it is damaged; Unsupported: as `load`.
        """
        return BackendModel(BloomBackbone.from_preset(folder, dtype=dtype, backend=self.name))

    def versions(self) -> Mapping[str, str]:
        packages = self.declaration.packages or ("numpy", "ml_dtypes", self.name)
        return {"bloomref": __version__, **versions_of(*packages)}


def _asked(backend: interface.Backend) -> Declaration:
    """The declaration of a backend that has none."""
    every = Declaration().dtypes
    dtypes = tuple(name for name in every if backend.unsupported(TINY, dtype_policy(name)) is None)
    return Declaration(dtypes or every)


class Offered:
    """Decorator of a method that a model has only under a condition: elsewhere `hasattr` is False."""

    def __init__(self, condition: Callable[["BackendModel"], bool]) -> None:
        self.condition = condition
        self.method: Any = None

    def __call__(self, method: Any) -> Self:
        self.method = method
        return self

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        if not self.condition(model):
            raise AttributeError(f"{owner.__name__} of backend {model.engine.backend!r} has no {self.method.__name__}")
        return MethodType(self.method, model)


class BackendModel:
    """A model that runs in bloomref's engine. It offers every optional method that its backend has."""

    def __init__(self, backbone: BloomBackbone) -> None:
        self.backbone = backbone
        self.form = ""

    @property
    def engine(self) -> Engine:
        return self.backbone.engine

    @property
    def backend(self) -> interface.Backend:
        """The backend, for the properties of backends."""
        return self.engine.runs_on

    @property
    def policy(self) -> DTypePolicy:
        return self.engine.policy

    @property
    def prepared(self) -> Prepared:
        """The prepared model, for the properties of backends."""
        return self.engine.prepared

    def adapted(self, path: Path) -> Self:
        """Load a LoRA adapter. It is merged into the weights if the backend does not support adapters (LRA-8)."""
        self.backbone.load_adapter(path)
        self.form = "peft" if path.is_dir() else "keras"
        return self

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.engine.logits(self.hidden(token_ids, is_real))

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.engine.hidden(TokenBatch(token_ids, is_real))

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> Float[Array, "B T V"]:
        cache = self.engine.new_cache(len(token_ids), capacity)
        edges = pairwise((0, *cuts, token_ids.shape[1]))
        parts = [self._piece(cache, a, token_ids[:, a:b], is_real[:, a:b]) for a, b in edges]
        return np.concatenate(parts, axis=1)

    def _piece(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Logits of one call. A single odd position is a decoding step, so that steps and blocks read each other's
        keys."""
        if token_ids.shape[1] == 1 and start % 2:
            return self.engine.read(cache, start, token_ids, is_real)[:, None]
        return self.engine.logits(self.engine.extend(cache, start, token_ids, is_real))

    def step(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], start: int, capacity: int
    ) -> Float[Array, "B _ V"]:
        return engine_decoding.steps(self.engine, token_ids, is_real, start, capacity)

    def tokens(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        return engine_decoding.tokens(self.engine, token_ids, is_real, choice, count)

    def merge(self) -> Self:
        self.backbone.merge_adapter()
        return self

    def unmerge(self) -> Self:
        self.backbone.unmerge_adapter()
        return self

    def call(self, token_ids: Any, padding_mask: Any) -> Float[Array, "B T V"]:
        return self.engine.logits(self.backbone({"token_ids": token_ids, "padding_mask": padding_mask}))

    def generate(
        self, prompts: Sequence[Sequence[int]], max_length: int, stop_token_ids: Sequence[int] | None
    ) -> list[list[int]]:
        arguments = {"prompts": prompts, "max_length": max_length, "stop_token_ids": stop_token_ids}
        rows: list[list[int]] = generate(BloomCausalLM(self.backbone), arguments)["rows"]
        return rows

    @Offered(lambda model: isinstance(model.prepared, SupportsTrace))
    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Mapping[str, Array]:
        return self.backbone.trace({"token_ids": token_ids, "padding_mask": is_real})

    @Offered(lambda model: isinstance(model.prepared, SupportsRecording))
    def trace_in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> Mapping[str, Array]:
        prepared: Any = self.prepared
        cache, calls = self.engine.new_cache(len(token_ids), capacity), []
        for start, stop in pairwise((0, *cuts, token_ids.shape[1])):
            with prepared.record(lambda _: True) as intermediates:
                hidden = self.engine.run(cache, start, token_ids[:, start:stop], is_real[:, start:stop])
                prepared.logits(hidden, False)
            calls.append(intermediates)
        return join(calls, token_ids.shape[1])

    @Offered(lambda model: isinstance(model.backend, SupportsGradients))
    def loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, Mapping[str, Array]]:
        labels = check_labels(labels, token_ids.shape, self.backbone.config.vocabulary_size)
        trainable = self.backbone.trainable_variables()
        loss, _, gradients = self.engine.loss_and_gradients(
            TokenBatch(token_ids, is_real), labels, trainable.__contains__
        )
        return loss, named(self.backbone.config, gradients, self.form)
