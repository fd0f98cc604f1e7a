"""The test subject: an implementation in one dtype, its models, and what it does not support."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Implementation, Model, offers
from bloomref.conformance.oracle.precision import Tier, tier_of
from bloomref.errors import BloomrefError, Unsupported, describe
from bloomref.params import Params, full_key
from bloomref.shapes import Array


class Raised(Exception):
    """The implementation raised an exception, which is the cause of this one."""


class NotAsked(Unsupported):
    """The kit does not ask a question. A plain `Unsupported` is the implementation's own refusal.

    Args:
        bounds: it bounds what the implementation may claim, since it declares no such feature or has no such method.
            False: the kit has no such question for this kind of implementation or this dtype.
    """

    def __init__(self, reason: str, bounds: bool = True) -> None:
        super().__init__(reason)
        self.bounds = bounds


@contextmanager
def converted() -> Iterator[None]:
    """Convert an exception of the implementation to `Raised`, except Unsupported."""
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:
        raise Raised(f"the implementation raised {type(error).__name__}: {error}") from error


PROBE = Case(
    BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=24), batch=1, time=3
)
"""The plainest model and input, which every implementation can run."""


@dataclass(eq=False)
class Subject:
    """An implementation in one dtype. The last model is cached: several questions about a case load it once."""

    implementation: Implementation
    dtype: str
    _last: tuple[object, Model] | None = field(default=None, repr=False)

    @property
    def adapter(self) -> Implementation:
        """Deprecated name of `implementation`."""
        warnings.warn("Subject.adapter is now called implementation", DeprecationWarning, stacklevel=2)
        return self.implementation

    @property
    def tier(self) -> Tier:
        able = self.implementation.capabilities
        return tier_of(self.dtype, able.scores, able.products)

    def model(self, case: Case) -> Model:
        """Load the model of a case, with its LoRA adapter.

        Raises:
            Unsupported: the implementation cannot load it.
        """
        if self._last is None or self._last[0] != case.model_key:
            self._last = None  # free the old model first: it may occupy the memory of a device
            self._last = case.model_key, self._load(case)
        return self._last[1]

    def _load(self, case: Case) -> Model:
        model: Any = self.implementation.load(case.config, named_weights(case.config, case.params), self.dtype)
        if case.lora is None:
            return model
        with TemporaryDirectory(prefix="bloomref_adapter_") as folder:
            try:
                path = case.lora.write(Path(folder), case.config)
            except Unsupported as error:  # a package of the kit is missing: no refusal by the implementation
                raise NotAsked(str(error)) from error
            return model.adapted(path)

    def ask(self, case: Case, method: str, *arguments: Any) -> Any:
        """Call a method of the case's model.

        Raises:
            Raised: the implementation raised, in the call or while loading.
            Unsupported: the implementation cannot answer.
        """
        with converted():
            return getattr(self.model(case), method)(*arguments)

    def exchange(self, case: Case, method: str) -> None:
        """Ask later questions about the case of the model that a method of its model returns, until `forget`.

        Raises:
            Raised, Unsupported: as `ask`.
        """
        self._last = case.model_key, self.ask(case, method)

    def forget(self) -> None:
        """Load the model again for the next question."""
        self._last = None

    def offers(self, case: Case, method: str) -> bool:
        """True if the case's model has an optional method (`implementation.OPTIONAL_METHODS`).

        Raises:
            Raised: the implementation raised while loading.
            Unsupported: the implementation cannot load the model.
        """
        with converted():
            return offers(self.model(case), method)

    def missing(self, case: Case) -> str | None:
        """Return what the case needs and the implementation does not declare, as a sentence, or None."""
        able = self.implementation.capabilities
        if self.is_inexact(case):
            return f"{self.dtype} cannot represent these weights exactly"
        lacking = sorted(needs(case) - able.features)
        if case.kind not in able.masks:
            lacking.append(f"masks with {case.kind}")
        if case.lora is not None and case.lora.form not in able.adapters:
            lacking.append(f"adapters in the form of {case.lora.form}")
        if able.max_time is not None and case.time > able.max_time:
            lacking.append(f"{case.time} positions")
        return f"{self.implementation.name} declares no support of {', '.join(lacking)}" if lacking else None

    def is_inexact(self, case: Case) -> bool:
        """True if the dtype cannot represent the case's weights."""
        return case.weights == "float32" and self.dtype not in ("float32", "float64")

    def unavailable(self) -> str | None:
        """Return why the implementation is not available here or not in this dtype, or None."""
        return self._probed[0]

    def problem(self) -> str | None:
        """Return a sentence if the implementation fails to load the plainest model, or None.

        A `Subject` with a problem does not conform, and no other question makes sense.
        """
        return self._probed[1]

    @cached_property
    def _probed(self) -> tuple[str | None, str | None]:
        """Results of `unavailable` and `problem`."""
        name, dtypes = self.implementation.name, self.implementation.capabilities.dtypes
        if self.dtype not in dtypes:
            return f"{name} declares no {self.dtype}, only {', '.join(dtypes)}", None
        try:
            model = self.model(PROBE)
        except Unsupported as error:
            return str(error), None
        except Exception as error:
            text = str(error) if isinstance(error, BloomrefError) else f"{type(error).__name__}: {error}"
            return None, f"{name} cannot load the plainest model in {self.dtype}: {text}"
        if not callable(getattr(model, "logits", None)):
            text = describe("load", "a model with a method logits", f"an object of the class {type(model).__name__}")
            return None, f"{name} cannot load the plainest model in {self.dtype}: {text}"
        return None, None


def needs(case: Case) -> frozenset[str]:
    """Optional features (`implementation.FEATURES`) that a case uses."""
    config = case.config
    uses = {
        "post-layernorm": config.apply_residual_connection_post_layernorm,
        "untied": not config.tie_word_embeddings,
        "mlp-width": config.intermediate_dim != 4 * config.hidden_dim,
        "epsilon": config.layer_norm_epsilon != 1e-5,
        "no-layers": config.num_layers == 0,
        "batch": case.batch > 1,
    }
    return frozenset(name for name, used in uses.items() if used)


def named_weights(config: BloomConfig, params: Params) -> dict[str, Array]:
    """Weights in the form that `Implementation.load` takes: float32, with Hugging Face's keys and shapes."""
    return {
        full_key(key): array.astype(np.float32).reshape(weight.hf_shape(config))
        for key, weight, array in params.named()
    }
