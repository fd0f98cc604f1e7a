"""`cause`: from a failure to the first wrong intermediate, its clauses, the known mistake and the command."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.diff import backward, origins
from bloomref.conformance.diff.cause import cause
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.mistakes import get_mistake
from bloomref.conformance.mistakes.examples import example
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.gradient_budgets import exact
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import VectorFailure, check
from bloomref.conformance.vectors.author.clauses import specified
from bloomref.conformance.vectors.read import locate, read
from bloomref.params import Params, full_key, keys
from bloomref.reference import vjp

CONFIG = BloomConfig(vocabulary_size=7, num_layers=2, num_heads=3, hidden_dim=6, intermediate_dim=10)
CASE = Case(CONFIG, batch=2, time=5)


def failed(subject: Subject, name: str, case: Case) -> Failure:
    with pytest.raises(Failure) as caught:
        PROPERTIES[name].check(subject, case)
    return caught.value


def lines_of(implementation: Any, name: str, case: Case) -> list[str]:
    subject = Subject(implementation, "float32")
    return cause(subject, failed(subject, name, case))


def of_mistake(mistake: str, name: str) -> list[str]:
    return lines_of(InstrumentedImplementation(get_mistake(mistake).model), name, example(get_mistake(mistake)))


def test_the_first_wrong_intermediate_with_clause_mistake_and_command():
    lines = of_mistake("gelu-quick", "logits")
    assert re.match(
        r"first wrong intermediate: layers\.0\.mlp\.gelu, row \d, position \d+: [\d.e+]+ times .*\(MLP-2\)", lines[0]
    )
    assert lines[1] == "everything before it is right, up to layers.0.mlp.up (13 intermediates)"
    assert lines[2].startswith("it matches gelu-quick (MLP-2): it computes the quick GELU")
    assert lines[3].startswith(
        "repeat: bloomref diff mistake:gelu-quick --dtype float32 --case 'Case(config=BloomConfig("
    )
    assert len(lines) == 4


def test_over_a_cache_only():
    lines = of_mistake("alibi-restarted", "pieces")
    assert lines[0] == "in one call of the whole input, all 32 intermediates are right"
    assert (
        lines[1]
        == "only over a cache with room for 12 positions (the input has 12), in calls that begin at 0, 5, 8, 9, 10, 11:"
    )
    assert "layers.0.attention.scores" in lines[2]
    assert "(KVC-1, KVC-2, " in lines[2]
    assert any(line.startswith("it matches alibi-restarted") for line in lines)
    assert lines[-1].endswith("--capacity 12")


@pytest.mark.slow
def test_of_an_adapter():
    lines = of_mistake("lora-scale-forgotten", "lora")
    assert "(LRA-3, LRA-1, LRA-12, ATT-2)" in lines[0]
    assert "without the adapter the model is right: it is the adapter" in lines
    assert any(line.startswith("it matches lora-scale-forgotten") for line in lines)


class LogitsAlone:
    """A model without a trace and without a cache."""

    def __init__(self, model: Any) -> None:
        self.logits = model.logits


class Changed:
    """The instrumented model, changed after it was loaded."""

    name = "changed"
    capabilities = Capabilities(dtypes=("float32",))

    def __init__(self, change: Callable[[Any], Any], model: type[InstrumentedModel] = InstrumentedModel) -> None:
        self.change, self.inner = change, InstrumentedImplementation(model)

    def load(self, config: BloomConfig, weights: Any, dtype: str) -> Any:
        return self.change(self.inner.load(config, weights, dtype))

    def versions(self) -> dict[str, str]:
        return {}


@pytest.mark.slow
def test_without_a_trace_the_logits_name_the_mistake():
    known = get_mistake("gelu-erf")
    lines = lines_of(Changed(LogitsAlone, known.model), "logits", example(known))
    assert lines[0].startswith("wrong (the implementation shows no intermediates): logits, row ")
    assert any("gelu-erf" in line for line in lines)


class Aliased(InstrumentedModel):
    """Adds the residual in place, so that all hidden states are recorded in one array."""

    def attention_residual(self, x: np.ndarray, normed: np.ndarray, output: np.ndarray) -> np.ndarray:  # noqa: ARG002
        x += output
        return x

    mlp_residual = attention_residual


def test_a_recording_that_changes_later_is_no_wrong_intermediate():
    lines = lines_of(InstrumentedImplementation(Aliased), "intermediates", CASE)
    assert lines[0].startswith("embedding_norm, layers.0.attention_block, layers.0.mlp_block and ")
    assert "are wrong, but what is computed from them is right: the recording changes after it was made" in lines[0]
    assert "embedding_norm holds the numbers of layers.1.mlp_block (MOD-8, MOD-11)" in lines[0]
    assert not any("first wrong" in line for line in lines)


class AliasedAndWrong(Aliased):
    def gelu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0.0)


@pytest.mark.slow
def test_behind_recordings_that_change_is_the_wrong_intermediate():
    lines = lines_of(InstrumentedImplementation(AliasedAndWrong), "intermediates", CASE)
    assert "the recording changes after it was made" in lines[0]
    assert lines[1].startswith("first wrong intermediate: layers.0.mlp.gelu, ")
    assert any(line.startswith("it matches relu") for line in lines)


@pytest.mark.slow
def test_a_number_that_is_not_finite_has_no_size():
    class Hidden(InstrumentedModel):
        def softmax(self, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
            probabilities = super().softmax(scores, visible)
            probabilities[0, 0, 1] = np.nan
            return probabilities

    first, before, *_ = lines_of(InstrumentedImplementation(Hidden), "logits", CASE)
    assert first.startswith("first wrong intermediate: layers.0.attention.probabilities, row 0, position 1: not finite")
    assert first.endswith("(ATT-6, ATT-5, ATT-7)")
    assert before.startswith("everything before it is right, up to layers.0.attention.scores")


def test_what_a_norm_removes_is_no_recording():
    """The norm of a single channel is its bias, whatever the embedding is."""
    config = CONFIG.replace(num_heads=1, hidden_dim=1, num_layers=0)
    lora = Lora(("word_embeddings",), rank=1, ranks=(("word_embeddings", 2),))
    wrong = InstrumentedImplementation(get_mistake("lora-rank-pattern-ignored").model)
    lines = lines_of(wrong, "lora", Case(config, batch=1, time=1, lora=lora))
    assert lines[0].startswith("first wrong intermediate: word_embedding, row 0, position 0: ")
    assert lines[1] == "but embedding_norm, computed from it, is right"
    assert any("lora-rank-pattern-ignored" in line for line in lines)


class NotCausalAtThree(InstrumentedModel):
    """Lets queries see later keys if the token after the first position is 3."""

    def run(self, token_ids: np.ndarray, *arguments: Any) -> dict[str, np.ndarray]:
        self.ids = token_ids
        return super().run(token_ids, *arguments)

    def causal(self, key: np.ndarray, query: np.ndarray) -> np.ndarray:
        return super().causal(key, query) | bool((self.ids[:, 1:2] == 3).any())


def test_a_property_that_changes_the_input_is_traced_on_the_changed_input():
    case = replace(CASE, batch=1, arrays=Arrays(token_ids=np.array([[1, 2, 2, 2, 2]])))
    lines = lines_of(InstrumentedImplementation(NotCausalAtThree), "causality", case)
    assert lines[:2] == [
        "in one call of the whole input, all 32 intermediates are right",
        "in a call with other tokens from position 1 on:",
    ]
    assert lines[2].startswith("first wrong intermediate: layers.0.attention.probabilities")


# --- gradients ------------------------------------------------------------------------------------------------------


class Gradients:
    """An implementation with gradients of the reference, which `spoil` changes, and a multiple of its loss."""

    name = "gradients"
    capabilities = Capabilities(dtypes=("float32",))

    def __init__(self, spoil: Callable[[dict[str, np.ndarray], Case], None], times: float = 1.0) -> None:
        self.spoil, self.times, self.inner = spoil, times, InstrumentedImplementation()

    def load(self, config: BloomConfig, weights: Any, dtype: str) -> Any:
        model = self.inner.load(config, weights, dtype)
        params: Params = model.model.params
        shapes = {key: weight.hf_shape(config) for key, weight in keys(config)}

        def loss_and_gradients(token_ids: Any, is_real: Any, labels: Any) -> tuple[float, dict[str, np.ndarray]]:
            result = vjp.loss_and_gradients(params, config, token_ids, is_real, labels)
            by_name = {full_key(key): value.reshape(shapes[key]) for key, value in result.gradients.items()}
            self.spoil(by_name, CASE)
            return self.times * result.loss, by_name

        model.loss_and_gradients = loss_and_gradients
        return model

    def versions(self) -> dict[str, str]:
        return {}


def without_the_head(by_name: dict[str, np.ndarray], case: Case) -> None:
    by_name["transformer.word_embeddings.weight"] = backward.tied_parts(case)["lookup"].astype(np.float32)


def test_the_part_of_a_tied_head_that_is_lost_is_named():
    lines = lines_of(Gradients(without_the_head), "gradients", CASE)
    assert lines[0].startswith("first wrong gradient, from the loss backwards: transformer.word_embeddings.weight: ")
    assert lines[0].endswith("(GRD-4, GRD-3)")
    assert lines[1].startswith("wrong: word_embeddings.weight; right: loss, ln_f.")
    assert lines[2].startswith("it is the part of the lookup alone: the head is tied")
    assert lines[-1].endswith("--gradients")


def test_a_sum_in_the_place_of_the_mean_leaves_nothing_right():
    def spoil(by_name: dict[str, np.ndarray], _: Case) -> None:
        for value in by_name.values():
            value *= 7.0

    lines = lines_of(Gradients(spoil, times=7.0), "gradients", CASE)
    assert lines[0].startswith("first wrong gradient, from the loss backwards: loss: ")
    assert lines[1].endswith("; right: nothing")
    assert lines[-1].endswith("--gradients")


def test_a_gradient_that_is_missing_is_named():
    lines = lines_of(Gradients(lambda by_name, _: by_name.pop("transformer.ln_f.weight")), "gradients", CASE)
    assert lines[0].endswith("(GRD-4)")


@pytest.mark.slow
def test_the_first_wrong_gradient_is_that_next_to_the_loss():
    def spoil(by_name: dict[str, np.ndarray], _: Case) -> None:
        for name, value in by_name.items():
            if name.startswith(("transformer.h.0", "transformer.word", "transformer.h.1.input")):
                value *= 2.0

    lines = lines_of(Gradients(spoil), "gradients", CASE)
    assert "transformer.h.1.input_layernorm" in lines[0]
    assert not any("tied" in line for line in lines)


def test_names_of_gradients_are_told_from_those_of_intermediates():
    names = ["loss", *(full_key(key) for key, _ in keys(CONFIG.replace(tie_word_embeddings=False)))]
    assert all(backward.is_gradient(name) for name in names)
    assert all(backward.clauses(name) != ("GRD-4",) for name in names)
    assert not any(backward.is_gradient(name) for name in truth(CASE).values)


def test_factors_of_adapters_are_gradients():
    case = replace(CASE, lora=Lora(("query_key_value",)))
    assert all(backward.is_gradient(name) for name in exact(case))
    assert [backward.clauses(name)[0] for name in exact(case)][1:] == ["LRA-1"] * 4


# --- it never raises --------------------------------------------------------------------------------------------------


def test_its_own_error_is_one_line(monkeypatch):
    failure = failed(Subject(InstrumentedImplementation(get_mistake("silu").model), "float32"), "logits", CASE)
    monkeypatch.setattr("bloomref.conformance.diff.cause.judged_run", lambda *_, **__: 1 / 0)
    [line] = cause(Subject(InstrumentedImplementation(), "float32"), failure)
    assert line.startswith("the search for the cause ended: ZeroDivisionError")


@pytest.mark.parametrize("name", ["masks", "refusals", "repeat"])
def test_where_no_intermediate_shows_more_there_are_no_lines(name):
    subject = Subject(InstrumentedImplementation(get_mistake("silu").model), "float32")
    assert cause(subject, replace(failed(subject, "logits", CASE), name=name)) == []


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_intermediate_has_an_origin_and_its_clauses_exist():
    ids = set(specified(Path(__file__).parents[2]))
    names = list(truth(CASE).values)
    assert [*dict.fromkeys(origins.split(name)[1] for name in names)] == list(origins.ORIGINS)
    listed = {c for o in origins.ORIGINS.values() for c in (*o.clauses, *o.over_cache, *o.adapted)}
    assert listed | {c for group in backward.CLAUSES.values() for c in group} <= ids


def test_every_intermediate_but_the_logits_has_consumers_after_it():
    names = list(truth(CASE).values)
    for i, name in enumerate(names[:-1]):
        after = origins.consumers(name, CONFIG.num_layers, names)
        assert after, name
        assert set(after) <= set(names[i + 1 :]), name
    assert origins.consumers("embedding_norm", 0, ["embedding_norm", "final_norm", "logits"]) == ["final_norm"]


def test_an_input_that_must_be_refused_is_not_run_again():
    """The answer shows all: an adapter that bloomref refuses has no truth."""
    [vector] = [vector for vector in read(locate()) if vector.id == "lra-prompt-tuning"]
    subject = Subject(InstrumentedImplementation(), "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bloomref.conformance.vectors.questions.refusable", lambda *_: None)
        with pytest.raises(VectorFailure, match="expected Unsupported, got a result") as failure:
            check(subject, vector)
    assert cause(subject, failure.value) == []
