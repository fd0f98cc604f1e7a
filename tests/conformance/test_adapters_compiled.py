"""The adapters of llama.cpp and CTranslate2, each in an environment that has it."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
from conformance.adapter_cases import CASES, asked, judged

from bloomref.conformance.adapters.ctranslate2 import CTranslate2
from bloomref.conformance.adapters.llama_cpp import LlamaCpp
from bloomref.conformance.oracle.budgets import judge
from bloomref.conformance.subject import Subject, named_weights
from bloomref.errors import Unsupported

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the imports of torch

needs_llama = pytest.mark.skipif(
    not (find_spec("llama_cpp") and find_spec("gguf")), reason="needs llama-cpp-python and gguf"
)
needs_ctranslate2 = pytest.mark.skipif(
    not (find_spec("ctranslate2") and find_spec("torch") and find_spec("transformers")),
    reason="needs ctranslate2, torch and transformers",
)
TEXTS = [case for case in CASES if case.kind != "holes"]


@needs_llama
@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)
def test_llama_cpp_in_float16(case):
    assert judged(Subject(LlamaCpp(), "float16"), case) == []


@needs_llama
@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)
def test_llama_cpp_in_float32_is_right_up_to_the_first_gelu(case):
    subject = Subject(LlamaCpp(), "float32")
    judgements = judge(case, subject.tier, asked(subject, case))
    first = next((found.name for found in judgements if found.verdict == "fail"), "layers.0.mlp.gelu")
    assert first == "layers.0.mlp.gelu"
    assert [found.name for found in judgements[:6]][-1] == "layers.0.attention.context"


@needs_llama
def test_llama_cpp_has_a_head_of_its_own_and_any_width_of_the_mlp():
    config = CASES[0].config.replace(tie_word_embeddings=False, intermediate_dim=37)
    assert judged(Subject(LlamaCpp(), "float16"), replace(CASES[0], config=config)) == []


@needs_llama
def test_llama_cpp_says_what_it_lacks():
    config = CASES[0].config.replace(apply_residual_connection_post_layernorm=True)
    with pytest.raises(Unsupported, match="post layernorm residual"):
        LlamaCpp().load(config, named_weights(config, CASES[0].params), "float32")


@needs_ctranslate2
@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)
def test_ctranslate2(case):
    assert judged(Subject(CTranslate2(), "float32"), case) == []


@needs_ctranslate2
@pytest.mark.parametrize("change", [{"layer_norm_epsilon": 1e-3}, {"apply_residual_connection_post_layernorm": True}])
def test_ctranslate2_drops_two_fields(change):
    case = replace(CASES[0], config=CASES[0].config.replace(**change))
    assert judged(Subject(CTranslate2(), "float32"), case)


@pytest.mark.parametrize("adapter", [LlamaCpp, CTranslate2])
def test_without_the_package_it_says_how_to_install_it(adapter, monkeypatch):
    monkeypatch.setattr("bloomref.conformance.adapters.common.find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="not installed; pip install"):
        adapter().load(CASES[0].config, named_weights(CASES[0].config, CASES[0].params), "float32")
