"""Every backend runs a model with adapters as the reference does."""

from typing import Any

import numpy as np
import pytest
from strategies import draw_params

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject
from bloomref.lora.adapter import DENSE_LAYERS
from bloomref.params import Params
from bloomref.runtime import registry

CONFIG = BloomConfig(vocabulary_size=60, num_layers=2, num_heads=3, hidden_dim=48, intermediate_dim=96)
ALL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "word_embeddings")
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "stop_token_ids": None}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5]]


def params() -> Params:
    return draw_params(CONFIG, np.random.default_rng(1)).astype(np.dtype(np.float32))


def model(backend: str, kind: str, dtype: str = "float32") -> BloomCausalLM:
    """A model with nonzero LoRA factors, on the backend."""
    lm = BloomCausalLM(BloomBackbone.from_params(CONFIG, params(), dtype, backend=backend))
    if kind == "peft":
        lm.add_adapter({"target_modules": ALL, "r": 4, "use_rslora": True})
    else:
        lm.enable_lora(4)
    rng = np.random.default_rng(2)
    factors = {name: 0.2 * rng.standard_normal(x.shape) for name, x in lm.trainable_variables().items()}
    lm.assign_variables(factors)
    return lm


@pytest.mark.clause("LRA-8")
@pytest.mark.parametrize("kind", ["peft", "keras"])
def test_generates_with_an_adapter_as_the_reference_does(backend: str, kind: str):
    if backend == registry.REFERENCE:
        pytest.skip("the reference is what the others are compared with")
    tested, reference = model(backend, kind), model(registry.REFERENCE, kind)
    assert tested.generate(PROMPTS, **OPTIONS) == reference.generate(PROMPTS, **OPTIONS)


@pytest.mark.clause("LRA-8")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lora", "lora-heads", "lora-itself"])
def test_the_kit_finds_it_right(backend: str, name: str, dtype: str):
    prop = PROPERTIES[name]
    adapter = Lora(ALL, rslora=True) if prop.adapter == "peft" else Lora(tuple(DENSE_LAYERS), form="keras")
    subject, case = Subject(Backend(backend), dtype), Case(CONFIG, time=9, cuts=(5,), gain=0.3, lora=adapter)
    if reason := subject.unavailable():
        pytest.skip(reason)
    assert prop.check(subject, case) < 5.0


@pytest.mark.clause("LRA-7", "LRA-8")
def test_switching_off_and_on(backend: str):
    lm = model(backend, "peft")
    batch = {"token_ids": [PROMPTS[0]]}
    adapted = lm(batch)
    plain = BloomCausalLM(BloomBackbone.from_params(CONFIG, params(), "float32", backend=backend))(batch)
    lm.set_adapter(None)
    np.testing.assert_array_equal(lm(batch), plain)
    lm.set_adapter("default")
    np.testing.assert_array_equal(lm(batch), adapted)
    lm.merge_adapter()
    np.testing.assert_allclose(lm(batch), adapted, rtol=1e-4, atol=1e-4)
    lm.unmerge_adapter()
    np.testing.assert_array_equal(lm(batch), adapted)
    assert np.abs(adapted - plain).max() > 0.1
