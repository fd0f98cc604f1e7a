"""The budget of gradients: reproducible, the same function at every anchor of ALiBi, and proportional to the unit."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import gradients
from bloomref.conformance.gradient_names import named
from bloomref.conformance.lora_cases import FORMS, Lora
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle import gradient_budgets
from bloomref.formats.adapters import keras_lora, peft
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.lora.adapter import DENSE_LAYERS

ROOT = Path(__file__).parents[2]
CONFIG = BloomConfig(vocabulary_size=11, num_layers=1, num_heads=3, hidden_dim=6, intermediate_dim=10)
CASE = Case(CONFIG, seed=2, time=5, kind="left")
POST_NORM = CONFIG.replace(apply_residual_connection_post_layernorm=True, tie_word_embeddings=False, num_layers=2)
CASES = {
    "tied": CASE,
    "untied, post-layernorm": replace(CASE, config=POST_NORM),
    "no layers": replace(CASE, config=CONFIG.replace(num_layers=0)),
    "peft": replace(CASE, lora=Lora((*LINEARS, EMBEDDING), dropout=0.5)),
    "keras": replace(CASE, lora=Lora(tuple(DENSE_LAYERS), form="keras")),
}


def instrumented(case: Case, model: type[InstrumentedModel] = InstrumentedModel) -> dict[str, np.ndarray]:
    loss, by_key = model.of(case).loss_and_gradients(case.token_ids, case.is_real, case.labels)
    return {"loss": np.asarray(loss)} | named(case.config, by_key, case.lora.form if case.lora else "")


class AnchoredAtStart(InstrumentedModel):
    anchor = 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("model", [InstrumentedModel, AnchoredAtStart])
@pytest.mark.clause("GRD-3")
def test_the_instrumented_backward_pass_is_that_of_the_reference(name, model):
    expected, result = gradient_budgets.exact(CASES[name]), instrumented(CASES[name], model)
    assert result.keys() == expected.keys()
    for key, gradient in expected.items():
        np.testing.assert_allclose(result[key], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max(), err_msg=key)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.clause("GRD-4", "LRA-10", "LRA-11")
def test_a_factor_has_the_name_and_the_shape_of_its_file(form, tmp_path):
    case = CASES[form]
    path = case.lora.write(tmp_path, case.config)
    if form == "peft":
        file = SafetensorsFile(path / peft.WEIGHTS)
        shapes = {name: entry.shape for name, entry in file.entries.items()}
    else:
        shapes = {name: variable.shape for name, variable in keras_lora.variables(path).items() if "kernel" in name}
    expected = gradient_budgets.exact(case)
    assert {name: gradient.shape for name, gradient in expected.items() if name != "loss"} == shapes


@pytest.mark.clause("LRA-15")
def test_b_of_zero_leaves_no_gradient_of_a():
    case = replace(CASE, lora=Lora(LINEARS, gain=0.0))
    for name, gradient in gradient_budgets.exact(case).items():
        if name != "loss":
            assert gradient.any() == ("lora_B" in name)
            assert (gradient_budgets.spread(case)[name] > 0.0) == ("lora_B" in name)
    assert gradient_budgets.judge("float32", "a", np.zeros(2), np.zeros(2), 0.0).verdict == "pass"
    assert gradient_budgets.judge("float32", "a", np.full(2, 1e-30), np.zeros(2), 0.0).verdict == "fail"


def explained(change) -> str:
    """Explanation of the first failure of right gradients that `change` spoils."""
    outputs = {name: gradient.copy() for name, gradient in gradient_budgets.exact(CASE).items()}
    loss = outputs.pop("loss")
    changed = change(outputs)
    judgements = gradients.summarised(gradients.judged(CASE, "bfloat16", loss, outputs if changed is None else changed))
    return next((judgement.explanation for judgement in judgements if judgement.verdict == "fail"), "")


@pytest.mark.clause("GRD-4")
def test_wrong_names_are_said():
    assert explained(lambda _: None) == ""
    bare = explained(lambda by_name: {name.removeprefix("transformer."): g for name, g in by_name.items()})
    assert "no gradient of transformer.ln_f.weight, transformer.ln_f.bias" in bare
    assert "the answer has h.0.input_layernorm.bias" in bare
    assert "has none of its own" in explained(lambda by_name: by_name | {"lm_head.weight": np.zeros((11, 6))})
    one = explained(lambda by_name: {name: g for name, g in by_name.items() if "ln_f.b" not in name})
    assert one.startswith("no gradient of transformer.ln_f.bias; the answer has 16 of 17 names")


@pytest.mark.clause("GRD-5")
def test_a_failure_says_which_other_gradients_are_right():
    def spoil(*names):
        return lambda by_name: by_name | {f"transformer.{name}": 2.0 * by_name[f"transformer.{name}"] for name in names}

    one = explained(spoil("word_embeddings.weight"))
    assert one.startswith("gradient of transformer.word_embeddings.weight: rms error")
    assert one.endswith("; right: all other 17")
    two = explained(spoil("word_embeddings.weight", "h.0.mlp.dense_h_to_4h.bias"))
    assert two.startswith("gradient of transformer.h.0.mlp.dense_h_to_4h.bias")  # the later one of the forward pass
    assert "; wrong further back: word_embeddings.weight; right: loss, ln_f.weight, ln_f.bias and 13 more" in two


def test_a_budget_is_the_same_each_time():
    assert gradient_budgets._spread.__wrapped__(CASE) == gradient_budgets._spread.__wrapped__(CASE)


def test_samples_in_one_batch_have_errors_of_their_own():
    [(anchors, runs)] = gradient_budgets._runs(CASE)
    for name, expected in gradient_budgets.exact(CASE).items():
        assert runs[name].shape == (len(anchors), *expected.shape)
        np.testing.assert_allclose(runs[name], np.broadcast_to(expected, runs[name].shape), rtol=0, atol=1e-4)
    assert len(np.unique(runs["loss"])) == len(anchors) == 2 * gradient_budgets.SAMPLES


def test_the_budget_of_a_dtype_is_that_of_its_accumulation_dtype():
    allowed = {dtype: gradient_budgets.UNITS[dtype] for dtype in ("float32", "bfloat16", "float16")}
    assert set(allowed.values()) == {2.0**-24}
    assert gradient_budgets.UNITS["float64"] < 2e-16


def imports_of(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip


def test_shipped_code_patches_nothing():
    """Adapters of peers patch the peer where it has no other seam; bloomref's own code has seams."""
    patching = {
        path.parent.name
        for path in (ROOT / "bloomref").rglob("*.py")
        if any(name.startswith("unittest") for name in imports_of(path))
    }
    assert patching <= {"adapters"}
