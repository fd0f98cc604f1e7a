"""Models of the reference are pickled, copied, and sent to other processes, with their adapters and tokenizers."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from small_models import text_lm

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.runtime.engine import Engine
from bloomref.runtime.numpy_backend import NumpyBackend

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_language_model(how: str) -> None:
    lm = text_lm()
    expected = lm.generate("the", max_new_tokens=4)
    twin: BloomCausalLM = COPIES[how](lm)
    assert twin.generate("the", max_new_tokens=4) == expected
    lm.add_adapter()
    assert "default" in COPIES[how](lm).adapter_set.loaded


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("dtype", ["float64", "mixed_float16"])
def test_a_backbone(how: str, dtype: str) -> None:
    model = BloomBackbone(10, 1, 2, 8, 16, dtype=dtype)
    twin = COPIES[how](model)
    inputs = {"token_ids": [[1, 2]]}
    assert twin(inputs).tobytes() == model(inputs).tobytes()
    assert (twin.config, twin.policy, twin.name) == (model.config, model.policy, model.name)


def test_a_backend_that_has_no_name_travels_itself() -> None:
    model = BloomBackbone(10, 1, 2, 8, 16)
    engine = Engine(model.params, model.config, model.policy, NumpyBackend())
    assert type(pickle.loads(pickle.dumps(engine)).runs_on) is NumpyBackend
