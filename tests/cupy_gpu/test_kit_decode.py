"""Steps and tokens of the emulated backend, as the conformance kit asks them of every implementation."""

from typing import Any

import pytest
from emulated_device import EmulatedDevice

from accel.cupy_gpu.cupy_backend import CupyBackend
from accel.cupy_gpu.prepared import CupyPrepared
from bloomref import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.adapters.installed_backend import BackendModel
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject

CONFIG = BloomConfig(vocabulary_size=23, num_layers=1, num_heads=3, hidden_dim=12, intermediate_dim=48)

pytestmark = pytest.mark.usefixtures("emulator")


class Emulated:
    """The CuPy backend on an emulated device."""

    name = "cupy, emulated"
    capabilities = Capabilities(dtypes=("float32", "bfloat16"))

    def load(self, config: BloomConfig, weights: Any, dtype: str) -> BackendModel:
        device = EmulatedDevice(seed=0)
        backend = CupyBackend("cupy", lambda: device)
        return BackendModel(BloomBackbone.from_params(config, params_of(config, weights), dtype, backend=backend))

    def versions(self) -> dict[str, str]:
        return {}


@pytest.mark.clause("BKD-17", "BKD-18", "GEN-9", "GEN-10")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["step", "tokens"])
def test_the_kit_finds_nothing_wrong(name: str, dtype: str) -> None:
    for seed in range(3):
        PROPERTIES[name].check(Subject(Emulated(), dtype), Case(CONFIG, seed=seed, time=5, kind="left"))


@pytest.mark.clause("BKD-18")
def test_draws_beyond_the_capacity_of_the_cache_are_those_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit asks for the draws after the first thousand, with a cache of ten positions."""
    asked: list[int] = []
    tokens = CupyPrepared.tokens

    def recorded(self: CupyPrepared, *arguments: Any) -> Any:
        asked.append(arguments[3].drawn)
        return tokens(self, *arguments)

    monkeypatch.setattr(CupyPrepared, "tokens", recorded)
    subject = Subject(Emulated(), "float32")
    seed = 0
    while not asked or max(asked) < 1000:
        PROPERTIES["tokens"].check(subject, Case(CONFIG, seed=seed, batch=1, time=5))
        seed += 1
