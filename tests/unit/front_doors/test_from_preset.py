"""`from_preset` resolves a preset once and chooses a backend once, also for a language model."""

from collections import Counter
from typing import Any

import pytest

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.presets import adapted_models
from bloomref.runtime import registry


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of calls by name."""
    counts: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **keywords)

        monkeypatch.setattr(module, name, call)

    counted(adapted_models, "resolve")
    counted(registry, "choose")
    return counts


@pytest.mark.parametrize("front_door", [BloomBackbone, BloomCausalLM])
@pytest.mark.parametrize("load_weights", [True, False])
@pytest.mark.parametrize("backend", ["numpy", "auto"])
def test_one_resolution_and_one_choice(calls: Counter[str], front_door: Any, load_weights: bool, backend: str) -> None:
    front_door.from_preset("bloom_tiny_udhr", load_weights, backend=backend)
    assert calls == {"resolve": 1, "choose": 1}


def test_new_weights_run_on_the_backend_that_was_chosen(calls: Counter[str]) -> None:
    model = BloomBackbone.from_preset("bloom_tiny_udhr")
    backend = model.engine.runs_on
    model.replace_params(model.params)
    model.enable_lora(2)
    assert model.engine.runs_on is backend
    assert calls["choose"] == 1
