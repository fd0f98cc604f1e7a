"""The transformers adapter: every method, on cases of every kind. Its errors are those of docs/findings.md."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers")):
    pytest.skip("needs torch and transformers", allow_module_level=True)

from conformance.adapter_cases import CASES, asked, judged

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.transformers import Transformers, TransformersFloat64
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject, named_weights
from bloomref.errors import Unsupported
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the imports of torch


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_as_installed(case, dtype):
    subject = Subject(Transformers(), dtype)
    wrong = judged(subject, case)
    assert bool(wrong) == (case.kind == "holes"), wrong


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "holes"], ids=lambda case: case.name)
def test_patched_float64(case):
    assert judged(Subject(TransformersFloat64(), "float64"), case) == []


def test_float64_as_installed_is_not_a_number_under_left_padding():
    """Padding becomes NaN in one block, real tokens in the next."""
    case = replace(CASES[0], kind="left")
    got = asked(Subject(Transformers(), "float64"), case)["logits"]
    assert np.isnan(got[case.is_real]).any()


def test_the_trace_has_every_name_but_the_scores():
    case = CASES[0]
    model = Subject(Transformers(), "float32").model(case)
    missing = truth(case).values.keys() - model.trace(case.token_ids, case.is_real).keys()
    assert missing == {f"layers.{i}.attention.scores" for i in range(case.config.num_layers)}


def test_gradients_predict_a_small_step():
    """Along the gradient, the loss changes by the square of its length."""
    case = next(case for case in CASES if case.kind == "left")
    labels = np.where(case.is_real, case.token_ids, -100)
    adapter, weights = TransformersFloat64(), named_weights(case.config, case.params)
    model = adapter.load(case.config, weights, "float64")
    loss, gradients = model.loss_and_gradients(case.token_ids, case.is_real, labels)
    assert gradients.keys() == weights.keys()
    square = sum(float((g**2).sum()) for g in gradients.values())
    step = 1e-6 / square
    for key, parameter in model.model.named_parameters():
        parameter.data -= step * parameter.data.new_tensor(gradients[key])
    after, _ = model.loss_and_gradients(case.token_ids, case.is_real, labels)
    assert (loss - after) / 1e-6 == pytest.approx(1.0, rel=1e-3)


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
@pytest.mark.clause("GRD-4", "LRA-15")
def test_gradients_of_the_factors_of_peft():
    lora = Lora((*LINEARS, EMBEDDING), dropout=0.5, ranks=(("dense", 2),))
    case = replace(next(case for case in CASES if case.kind == "left"), lora=lora)
    assert PROPERTIES["lora-gradients"].check(Subject(Transformers(), "float32"), case) < 5.0


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
@pytest.mark.clause("LRA-1", "LRA-4", "LRA-12")
@pytest.mark.parametrize("name", ["lora", "lora-itself"])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_by_peft(name, rslora):
    adapter = Lora((*LINEARS, EMBEDDING), rslora=rslora, dropout=0.5, ranks=(("dense", 2),), alphas=(("mlp.*", 3.0),))
    case = replace(CASES[0], kind="left", lora=adapter)
    for kit, dtype in ((TransformersFloat64(), "float64"), (Transformers(), "float32"), (Transformers(), "bfloat16")):
        assert PROPERTIES[name].check(Subject(kit, dtype), case) < 5.0


def test_without_peft_adapters_are_unsupported(monkeypatch):
    monkeypatch.setattr("bloomref.conformance.adapters.common.find_spec", lambda name: name != "peft" or None)
    case = replace(CASES[0], lora=Lora())
    with pytest.raises(Unsupported, match="peft not installed"):
        PROPERTIES["lora"].check(Subject(Transformers(), "float32"), case)


def test_another_width_of_the_mlp_is_unsupported():
    config = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=10)
    with pytest.raises(Unsupported, match="MLP width"):
        Transformers().load(config, named_weights(config, Case(config).params), "float32")


def test_the_versions():
    assert Transformers().versions().keys() == {"transformers", "torch"}
