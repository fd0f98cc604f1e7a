"""What is tested: an implementation in one dtype, its models, and what it cannot do."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Adapter, Model
from bloomref.conformance.oracle.precision import Tier, tier_of
from bloomref.errors import Unsupported
from bloomref.params import LM_HEAD, Params
from bloomref.shapes import Array


class Raised(Exception):
    """The implementation raised; its own exception is the cause."""


PROBE = Case(
    BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=24), batch=1, time=3
)
"""The plainest model and input: what every implementation can run."""


@dataclass(eq=False)
class Subject:
    """One implementation in one dtype. It keeps the last model, so that several questions about a case load one."""

    adapter: Adapter
    dtype: str
    _last: tuple[object, Model] | None = field(default=None, repr=False)

    @property
    def tier(self) -> Tier:
        return tier_of(self.dtype, self.adapter.capabilities.scores)

    def model(self, case: Case) -> Model:
        """The case's model, loaded, with its adapter.

        Raises:
            Unsupported: by the adapter, with its reason.
        """
        key = (case.config, case.seed, case.gain, case.qk_gain, case.embedding_std, case.weights, case.lora)
        if self._last is None or self._last[0] != key:
            self._last = None  # the old one may hold a device's memory
            self._last = key, self._loaded(case)
        return self._last[1]

    def _loaded(self, case: Case) -> Model:
        model: Any = self.adapter.load(case.config, named_weights(case.config, case.params), self.dtype)
        if case.lora is None:
            return model
        with TemporaryDirectory(prefix="bloomref_adapter_") as folder:
            return model.adapted(case.lora.write(Path(folder), case.config))

    def ask(self, case: Case, method: str, *arguments: Any) -> Any:
        """What a method of the case's model returns.

        Raises:
            Raised: from what the implementation raised, in the call or while loading; Unsupported: by the adapter.
        """
        try:
            return getattr(self.model(case), method)(*arguments)
        except Unsupported:
            raise
        except Exception as error:
            raise Raised(f"it raised {type(error).__name__}: {error}") from error

    def missing(self, case: Case) -> str | None:
        """What the case needs and the implementation has declared that it lacks."""
        able = self.adapter.capabilities
        lacking = sorted(needs(case) - able.features)
        if case.kind not in able.masks:
            lacking.append(f"masks with {case.kind}")
        if case.lora is not None and case.lora.form not in able.adapters:
            lacking.append(f"adapters in the form of {case.lora.form}")
        if case.weights == "float32" and self.dtype not in ("float32", "float64"):
            return f"{self.dtype} does not hold these weights exactly"
        if able.max_time is not None and case.time > able.max_time:
            lacking.append(f"{case.time} positions")
        return f"{self.adapter.name} declares no support of {', '.join(lacking)}" if lacking else None

    def unavailable(self) -> str | None:
        """Why not even the plainest model loads here, or None."""
        if self.dtype not in self.adapter.capabilities.dtypes:
            return f"{self.adapter.name} declares no {self.dtype}, only {', '.join(self.adapter.capabilities.dtypes)}"
        try:
            self.model(PROBE)
        except Unsupported as error:
            return str(error)
        return None


def needs(case: Case) -> frozenset[str]:
    """The features (`implementation.FEATURES`) that a case asks for."""
    config = case.config
    asked = {
        "post-layernorm": config.apply_residual_connection_post_layernorm,
        "untied": not config.tie_word_embeddings,
        "mlp-width": config.intermediate_dim != 4 * config.hidden_dim,
        "epsilon": config.layer_norm_epsilon != 1e-5,
        "no-layers": config.num_layers == 0,
        "batch": case.batch > 1,
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def named_weights(config: BloomConfig, params: Params) -> dict[str, Array]:
    """As `Adapter.load` takes them: float32, with Hugging Face's keys and shapes."""
    return {
        key if key == LM_HEAD.hf_key else f"transformer.{key}": array.astype(np.float32).reshape(
            weight.hf_shape(config)
        )
        for key, weight, array in params.named()
    }


def full_key(key: str) -> str:
    """A key of bloomref's table as Hugging Face's causal model has it."""
    return key if key == LM_HEAD.hf_key else f"transformer.{key}"
