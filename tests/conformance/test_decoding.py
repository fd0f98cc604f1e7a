"""Steps, tokens and merges: the properties hold for right implementations, and each mistake of decoding is found."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import decoding
from bloomref.conformance.checks.merging import merged_case
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES
from bloomref.conformance.model.decoding_hooks import uniform
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.choices import possible
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.generation import sampling
from bloomref.generation.options import GenerationOptions
from bloomref.generation.row_scores import Scores
from bloomref.runtime.backend import Choice

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
CASES = [Case(CONFIG, seed=seed, batch=3, time=9, kind=("left", "real")[seed % 2]) for seed in range(8)]
ADAPTED = [replace(case, lora=Lora((*LINEARS, EMBEDDING), rank=2, alpha=3.0)) for case in CASES[:2]]
OF_DECODING = [known for known in MISTAKES if "decoding" in known.needs]
OF_MERGING = [known for known in MISTAKES if "merge" in known.needs]
SEEDS = st.integers(0, 2**64 - 1)
SLOW = pytest.mark.slow


def failure(subject: Subject, names: tuple[str, ...], cases: list[Case]) -> Failure | None:
    """The first failure of these properties."""
    for case in cases:
        for name in names:
            try:
                PROPERTIES[name].check(subject, case)
            except Failure as first:
                return first
            except Inconclusive:
                pass
    return None


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
@pytest.mark.parametrize("known", OF_DECODING, ids=lambda known: known.name)
def test_a_mistake_of_decoding_is_found(known, dtype):
    first = failure(Subject(InstrumentedImplementation(known.model), dtype), ("step", "tokens"), CASES)
    assert first is not None
    assert set(known.clauses) & {*first.clauses, "KVC-1", "KVC-3"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])  # in float64, sums of few bits have no error
@pytest.mark.parametrize("known", OF_MERGING, ids=lambda known: known.name)
def test_a_mistake_of_merging_is_found(known, dtype):
    first = failure(Subject(InstrumentedImplementation(known.model), dtype), ("merge",), ADAPTED)
    assert first is not None
    assert "LRA-6" in first.clauses


@pytest.mark.slow
@pytest.mark.parametrize(
    "known", [pytest.param(m, marks=SLOW if i % 4 else (), id=m.name) for i, m in enumerate(EQUIVALENTS)]
)
def test_no_equivalent_is_objected_to(known):
    subject = Subject(InstrumentedImplementation(known.model), "float32")
    assert failure(subject, ("step", "tokens"), CASES[:2]) is None
    assert failure(subject, ("merge",), ADAPTED[:1]) is None


@pytest.mark.clause("BKD-17", "BKD-18", "GEN-6", "LRA-6", "LRA-7")
@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(name, marks=SLOW) for name in ("float64", "bfloat16"))])
def test_the_properties_hold_for_an_installed_backend(dtype):
    subject = Subject(Backend(), dtype)
    assert failure(subject, ("step", "tokens"), CASES[:2]) is None
    assert failure(subject, ("merge",), ADAPTED) is None
    assert subject._last is None  # a merged model is asked nothing else


class WrongShape(InstrumentedModel):
    def steps(self, token_ids, is_real, start, capacity):
        return super().steps(token_ids, is_real, start, capacity)[:, 1:]

    def tokens(self, token_ids, is_real, choice, count):
        return super().tokens(token_ids, is_real, choice, count).astype(float)


class BeyondTheVocabulary(InstrumentedModel):
    def tokens(self, token_ids, is_real, choice, count):
        return super().tokens(token_ids, is_real, choice, count) + 23


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (WrongShape, "step", r"expected logits of shape \(3, 8, 23\), got \(3, 7, 23\)"),
        (WrongShape, "tokens", r"expected integers of shape \(3, 5\), got float64"),
        (BeyondTheVocabulary, "tokens", r"expected ids in \[0, 23\)"),
    ],
)
def test_results_of_a_wrong_form_are_named(model, name, message):
    with pytest.raises(Failure, match=message):
        PROPERTIES[name].check(Subject(InstrumentedImplementation(model), "float32"), CASES[0])


@pytest.mark.clause("GEN-9")
@given(SEEDS, st.integers(0, 2**31 - 1))
def test_the_kit_and_the_host_have_the_same_numbers(seed, drawn):
    assert uniform(seed, drawn) == sampling.uniform(seed, drawn)


@pytest.mark.clause("GEN-7", "GEN-9", "GEN-10")
@given(SEEDS, st.integers(0, 9), st.booleans())
def test_the_host_takes_a_possible_token_and_seldom_more_than_one_is(seed, drawn, with_error):
    rng = np.random.default_rng(seed)
    scores, error = rng.permutation(30) / 8.0, 0.01 if with_error else 0.0
    choice = decoding.choices(Case(CONFIG.replace(vocabulary_size=30), seed=seed % 2**32, batch=1), 1.0)[1 + seed % 4]
    off = scores + rng.uniform(-error, error, 30)
    off[choice.forbidden if choice.forbidden is not None else []] = -np.inf
    options = GenerationOptions(do_sample=True, temperature=choice.temperature, top_k=choice.top_k, top_p=choice.top_p)
    may = possible(scores, error, choice, uniform(seed, drawn))
    assert may[sampling.choose(Scores(off), options, seed, drawn)]
    assert choice.forbidden is None or not may[choice.forbidden].any()


@pytest.mark.clause("GEN-1")
def test_possible_tokens_by_hand():
    scores = np.log([0.1, 0.4, 0.4, 0.1])
    greedy, half = Choice(), Choice(temperature=1.0, top_p=0.5)

    def ids(choice, error, number=0.0):
        return np.flatnonzero(possible(scores, error, choice, number)).tolist()

    assert ids(greedy, 0.0) == [1]
    assert ids(greedy, 1e-6) == [1, 2]
    assert ids(replace(greedy, forbidden=np.arange(4) == 1), 0.0) == [2]
    everything = Choice(temperature=1.0)
    assert [ids(everything, 0.0, u) for u in (0.05, 0.15, 0.6, 0.95)] == [[0], [1], [2], [3]]
    assert ids(everything, 0.0, 0.1 + 1e-7) == [0, 1]
    assert ids(everything, 0.02, 0.101) == [0, 1]
    assert [ids(half, 0.0, u) for u in (0.1, 0.9)] == [[1], [2]]
    assert ids(Choice(temperature=1.0, top_k=1), 0.0, 0.9) == [1, 2]  # which of equal tokens top-k keeps is open
    assert ids(everything, np.inf, 0.05) == [0, 1, 2, 3]


def test_exact_scores_are_the_logits_of_every_position():
    for case in CASES[:2]:
        exact = decoding.with_exact_scores(case)
        expected = np.broadcast_to(decoding.exact_scores(case), (*case.is_real.shape, 23))
        for dtype in ("float64", "float32", "bfloat16", "float16"):
            logits = Subject(Backend(), dtype).ask(exact, "logits", case.token_ids, case.is_real)
            assert np.array_equal(logits, expected)


@pytest.mark.clause("LRA-6")
def test_the_merged_case_has_rounded_weights_and_the_results_of_the_adapter():
    wide, narrow = (merged_case(ADAPTED[0], dtype) for dtype in ("float64", "bfloat16"))
    adapted, merged = (truth(case).values["logits"] for case in (ADAPTED[0], wide))
    real = ADAPTED[0].is_real
    np.testing.assert_allclose(merged[real], adapted[real], atol=1e-12)
    assert np.abs(truth(narrow).values["logits"][real] - adapted[real]).max() > 1e-3
    assert not narrow.config.tie_word_embeddings
