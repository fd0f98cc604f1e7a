"""bloomref itself, on one of its backends: `--backend numpy`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from bloomref import __version__
from bloomref.backbone import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of, versions_of
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import FORMS
from bloomref.params import full_key, keys
from bloomref.runtime import registry
from bloomref.runtime.backend import SupportsTrace
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Bool, Float, Int


class Backend:
    """A backend, by its name in `bloomref backends`."""

    capabilities = Capabilities(dtypes=("float32", "bfloat16", "float16", "float64"), adapters=FORMS)

    def __init__(self, name: str = registry.REFERENCE) -> None:
        self.name = name

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "BackendModel":
        """Load a model on the backend.

        Raises:
            Unsupported: the backend is not installed, or cannot run this model here.
            InvalidInput: no backend has this name.
        """
        backbone = BloomBackbone.from_params(config, params_of(config, weights), dtype, backend=self.name)
        traces = isinstance(backbone.engine.prepared, SupportsTrace)
        return TracedModel(backbone) if traces else BackendModel(backbone)

    def versions(self) -> Mapping[str, str]:
        return {"bloomref": __version__, **versions_of("numpy", "ml_dtypes", self.name)}


class BackendModel:
    """A model that runs in bloomref's engine."""

    def __init__(self, backbone: BloomBackbone) -> None:
        self.backbone = backbone

    @property
    def engine(self) -> Engine:
        return self.backbone.engine

    def adapted(self, path: Path) -> Self:
        """Load a LoRA adapter. It is merged into the weights if the backend does not support adapters (LRA-8)."""
        self.backbone.load_adapter(path)
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
        parts = [self.engine.extend(cache, a, token_ids[:, a:b], is_real[:, a:b]) for a, b in edges]
        return np.concatenate([self.engine.logits(part) for part in parts], axis=1)

    def call(self, token_ids: Any, padding_mask: Any) -> Float[Array, "B T V"]:
        return self.engine.logits(self.backbone({"token_ids": token_ids, "padding_mask": padding_mask}))


class TracedModel(BackendModel):
    """A model on a backend that traces intermediates and computes gradients."""

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Mapping[str, Array]:
        return self.backbone.trace({"token_ids": token_ids, "padding_mask": is_real})

    def loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, Mapping[str, Array]]:
        loss, _, gradients = self.engine.loss_and_gradients(TokenBatch(token_ids, is_real), labels)
        shapes = {key: weight.hf_shape(self.backbone.config) for key, weight in keys(self.backbone.config)}
        return loss, {full_key(key): array.reshape(shapes[key]) for key, array in gradients.items()}
