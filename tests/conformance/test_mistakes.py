"""The catalogue: each mistake changes the intermediate that it names, and none before, in a case with its needs."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bloomref.conformance import gradient_names
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import gradients
from bloomref.conformance.diff import backward
from bloomref.conformance.mistakes import CATALOGUE, EQUIVALENTS, MISTAKES, NO_INTERMEDIATE, Mistake, get_mistake
from bloomref.conformance.mistakes.examples import CONFIG, example
from bloomref.conformance.mistakes.inexact_softmax import SplitKeys
from bloomref.conformance.mistakes.mistake import OTHER_NEEDS, REGISTRY, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import LIMIT, judge, tier_of
from bloomref.conformance.oracle.intermediates import per_position
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.conformance.tags import TAGS
from bloomref.errors import InvalidInput

VISIBLE = [m for m in MISTAKES if m.first != NO_INTERMEDIATE]
FLOAT32 = tier_of("float32")
WIDE = {"float32": np.float32, "float64": np.float64}
ROOT = Path(__file__).parents[2]


def named(known: Mistake) -> str:
    return known.name


def outputs(model: type[InstrumentedModel], case: Case, dtype: type = np.float64) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        return model.of(case, dtype=dtype).run(case.token_ids, case.is_real, case.cuts)


def first_change(known: Mistake, case: Case) -> str | None:
    right, wrong = outputs(InstrumentedModel, case), outputs(known.model, case)
    for name, value in right.items():
        with np.errstate(invalid="ignore"):
            apart = per_position(name, wrong[name] - value, case.is_real)
        if not np.all(apart <= 1e-12 * np.abs(value).max(initial=0.0)):
            return name
    return None


def test_the_names_of_the_catalogue_are_distinct_and_its_mistakes_are_those_of_the_proof():
    assert len({known.name for known in CATALOGUE}) == len(CATALOGUE)
    assert set(CATALOGUE) == set(REGISTRY)
    proof = json.loads((ROOT / "docs/proof/mistakes.json").read_text("utf-8"))
    assert list(proof["catalogue"]) == [known.name for known in (*MISTAKES, *EQUIVALENTS)]


def test_blocks_of_keys_joined_rightly_are_one_softmax():
    """So the mistakes of `SplitKeys` are their own."""
    for kind in ("real", "left", "holes"):
        case = Case(config=CONFIG, time=11, kind=kind)
        right, joined = outputs(InstrumentedModel, case), outputs(SplitKeys, case)
        assert all(np.allclose(joined[name], value, rtol=0, atol=1e-13) for name, value in right.items())


@pytest.mark.parametrize("known", VISIBLE, ids=named)
def test_a_mistake_changes_first_what_it_says(known):
    assert first_change(known, example(known)) == known.first


@pytest.mark.parametrize("known", [m for m in EQUIVALENTS if m.name != "gelu-sqrt-2-over-pi"], ids=named)
@pytest.mark.parametrize("kind", ["real", "left", "holes"])
def test_an_equivalent_changes_nothing(known, kind):
    case = Case(example(known).config, batch=3, time=12, kind=kind, cuts=(4, 5), lora=example(known).lora)
    assert first_change(known, case) is None


def test_another_constant_of_gelu_is_the_same_in_float32_alone():
    known = get_mistake("gelu-sqrt-2-over-pi")
    case = example(known)
    assert first_change(known, case) == known.first
    assert max(found.z for found in judge(case, FLOAT32, outputs(known.model, case, np.float32))) <= LIMIT


@pytest.mark.parametrize("known", EQUIVALENTS, ids=named)
def test_an_equivalent_is_within_the_budget_of_float32(known):
    case = Case(example(known).config, batch=2, time=20, kind="left", lora=example(known).lora)
    assert [
        found.explanation
        for found in judge(case, FLOAT32, outputs(known.model, case, np.float32))
        if found.verdict == "fail"
    ] == []


WHOLE = [known for known in VISIBLE if "pieces" not in known.needs]
EVERY_EIGHTH = [pytest.param(m, marks=pytest.mark.slow if i % 8 else (), id=m.name) for i, m in enumerate(WHOLE)]


@pytest.mark.parametrize("known", EVERY_EIGHTH)
def test_a_mistake_of_its_example_leaves_the_budget_of_its_dtype(known):
    case = example(known)
    results = outputs(known.model, case, WIDE[known.dtype])
    assert "fail" in [found.verdict for found in judge(case, tier_of(known.dtype), results)]


@pytest.mark.parametrize("known", [m for m in VISIBLE if "pieces" in m.needs], ids=named)
def test_a_mistake_of_the_cache_needs_the_cache(known):
    case = example(known)
    whole = replace(case, cuts=())
    assert first_change(known, whole) is None
    wrong = outputs(known.model, case, np.float32)["logits"]
    assert judge(whole, FLOAT32, {"logits": wrong})[0].verdict == "fail"


FAST = ("loss-summed", "tied-gradient", "lora-gradient-unscaled", "anchored-at-start", "lora-merged")


def mostly_slow(mistakes: Iterable[Mistake]) -> list:
    """Parameters of a test that is slow for all but `FAST`."""
    return [pytest.param(m, marks=() if m.name in FAST else pytest.mark.slow, id=m.name) for m in mistakes]


@pytest.mark.parametrize("known", mostly_slow(m for m in MISTAKES if m.is_of_gradients))
def test_a_mistake_of_the_backward_pass_changes_gradients_alone(known):
    case = example(known)
    assert first_change(known, case) is None
    outputs = known.model.of(case).loss_and_gradients(case.token_ids, case.is_real, case.labels)
    named_outputs = gradient_names.named(case.config, outputs[1], case.lora.form if case.lora else "")
    judgements = gradients.judged(case, "float32", outputs[0], named_outputs)
    assert [judgement.name for judgement in judgements if judgement.verdict == "fail"]
    if known.name != "gradients-in-bfloat16":  # an error of float32 decides to which number it rounds
        answer = {"loss": np.asarray(outputs[0])} | named_outputs
        assert backward.explanations(case, "float32", answer) == [known]


@pytest.mark.parametrize("known", mostly_slow(EQUIVALENTS))
def test_the_gradients_of_an_equivalent_are_right(known):
    case = replace(example(known), kind="left", time=8)
    subject = Subject(InstrumentedImplementation(known.model), "float32")
    assert {judgement.verdict for judgement in gradients.overview(subject, case)} <= {"pass", "inconclusive"}


@pytest.mark.parametrize("known", [m for m in MISTAKES if "invalid-input" in m.needs], ids=named)
def test_a_mistake_of_validation_accepts_what_must_be_refused_and_changes_no_result(known):
    case = example(known)
    mutant = known.model(case.config, case.params)
    ones, last = np.ones_like(case.token_ids), case.config.vocabulary_size - 1
    offers = [
        (case.token_ids * 0 - 1, ones),
        (case.token_ids * 0 + last + 1, ones),
        (case.token_ids + 2**32, ones),
        (case.token_ids + 0.5, ones),
        (case.token_ids, ones * 2),
        (case.token_ids, ones[:, :-1]),
    ]
    right = InstrumentedModel(case.config, case.params)
    taken = [ids for ids, mask in offers if refused(right, ids, mask) and not refused(mutant, ids, mask)]
    assert taken
    assert first_change(known, case) is None


@pytest.mark.parametrize("known", [m for m in MISTAKES if m.needs & {"decoding", "merge"}], ids=named)
def test_a_mistake_of_decoding_or_merging_changes_no_intermediate(known):
    assert known.first == NO_INTERMEDIATE
    assert first_change(known, example(known)) is None


def refused(model: InstrumentedModel, ids: np.ndarray, mask: np.ndarray) -> bool:
    try:
        model.accept(ids, mask)
    except InvalidInput:
        return True
    return False


def test_clauses_and_needs_exist_and_sentences_continue_after_it():
    specs = "\n".join(path.read_text("utf-8") for path in (ROOT / "specs").glob("*.md"))
    clauses = set(re.findall(r"^- \*\*([A-Z]+-\d+)\*\*", specs, re.MULTILINE))
    order = [*truth(Case(example(CATALOGUE[0]).config)).values, NO_INTERMEDIATE]
    for known in CATALOGUE:
        assert known.clauses, known.name
        assert set(known.clauses) <= clauses, known.name
        assert known.needs <= TAGS.keys() | OTHER_NEEDS.keys()
        assert known.first in order, known.name
        assert re.fullmatch(r"(does|has|[a-z]+s) .*[^.]", known.sentence), known.name  # as in "it swaps query and key."


@pytest.mark.parametrize("known", [m for m in MISTAKES if m.dtype != "float32"], ids=named)
def test_a_mistake_of_a_wider_dtype_is_within_the_budget_of_float32(known):
    case = example(known)
    assert "fail" not in [found.verdict for found in judge(case, FLOAT32, outputs(known.model, case, np.float32))]


def test_an_unknown_name_or_need_is_refused():
    with pytest.raises(InvalidInput, match="known mistake"):
        get_mistake("no-such")
    with pytest.raises(ValueError, match="purple"):
        mistake("x", "x", "ATT-1", first="logits", needs="purple")
