"""A backend of another package: the reference, with a log of its calls. Nothing imports it but its entry point."""

from typing import Any

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import Params
from bloomref.runtime.backend import API_VERSION, Prepared
from bloomref.runtime.numpy_backend import NumpyPrepared

MAX_LAYERS = 5
REQUIRED = {name for name in vars(Prepared) if not name.startswith("_")}
"""It has no optional capability."""


class FakePrepared:
    """Records the name of every called method, and calls the reference."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.calls: list[str] = []
        self._reference = NumpyPrepared(params.astype(policy.compute_dtype), config)

    def __getattr__(self, name: str) -> Any:
        if name not in REQUIRED:
            raise AttributeError(name)
        method = getattr(self._reference, name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return method(*arguments)

        return call


class FakeBackend:
    name = "fake"
    api_version = API_VERSION

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:  # noqa: ARG002
        if config.num_layers > MAX_LAYERS:
            return f"{config.num_layers} layers are too many; it holds {MAX_LAYERS}"
        return None

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> FakePrepared:
        return FakePrepared(params, config, policy)


def backend() -> FakeBackend:
    return FakeBackend()
