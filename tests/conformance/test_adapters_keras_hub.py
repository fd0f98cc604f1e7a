"""The KerasHub adapter: every method, on cases of every kind. Its errors are those of docs/findings.md."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

if not find_spec("keras_hub"):
    pytest.skip("needs keras_hub and JAX, in a separate environment", allow_module_level=True)

from conformance.adapter_cases import CASES, judged

from bloomref.conformance.adapters.keras_hub import KerasHub
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run.runner import lacking
from bloomref.conformance.subject import Subject, named_weights
from bloomref.errors import Unsupported
from bloomref.lora.adapter import DENSE_LAYERS

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the imports of Keras, JAX and TensorFlow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32(case):
    """Over a cache, padding before or inside a text counts as text."""
    wrong = judged(Subject(KerasHub(), "float32"), case)
    assert bool(wrong) == (case.kind in ("left", "holes")), wrong


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype):
    assert judged(Subject(KerasHub(), dtype), CASES[0]) == []


@pytest.mark.clause("LRA-1", "LRA-11")
@pytest.mark.parametrize("targets", [("query_dense", "value_dense"), tuple(DENSE_LAYERS)], ids=["default", "all"])
def test_adapters(targets):
    case = replace(CASES[0], lora=Lora(targets, form="keras"))
    assert PROPERTIES["lora-heads"].check(Subject(KerasHub(), "float32"), case) < 5.0
    assert lacking(PROPERTIES["lora"], Subject(KerasHub(), "float32")) is not None


def test_the_trace_has_every_name():
    model = Subject(KerasHub(), "float32").model(CASES[0])
    assert model.trace(CASES[0].token_ids, CASES[0].is_real).keys() == truth(CASES[0]).values.keys()


def test_what_it_cannot_say_is_unsupported():
    case = CASES[0]
    for change in ({"apply_residual_connection_post_layernorm": True}, {"tie_word_embeddings": False}):
        with pytest.raises(Unsupported, match="keras-hub: it does not support"):
            KerasHub().load(case.config.replace(**change), named_weights(case.config, case.params), "float32")
