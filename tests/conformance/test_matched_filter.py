"""A mistake below the noise is named by projection, and none is named for a correct model."""

from dataclasses import dataclass

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import LIMIT, TIERS, judge
from bloomref.conformance.oracle.matched_filter import Amplitude, project
from bloomref.conformance.oracle.truth import truth


@dataclass(frozen=True)
class Planted:
    name: str
    model: type[InstrumentedModel]


class ShortGelu(InstrumentedModel):
    """GELU with 0.79788 in place of 0.79788456."""

    def gelu(self, x):
        return 0.5 * x * (1.0 + np.tanh(0.79788 * x * (1.0 + 0.044715 * x * x)))


class LargerEpsilon(InstrumentedModel):
    def epsilon(self):
        return 1.1 * super().epsilon()


class NoOutputBias(InstrumentedModel):
    def attention_output(self, layer, context):
        return context @ layer.attn_out_weight.reshape(context.shape[-1], -1).T


class Unchanged(InstrumentedModel):
    """A mistake without effect, which has no direction."""


KNOWN = tuple(Planted(mutant.__name__, mutant) for mutant in (ShortGelu, LargerEpsilon, NoOutputBias, Unchanged))


def case(seed, heads=3, width=8, layers=2, embedding_std=1.0):
    dim = heads * width
    config = BloomConfig(
        vocabulary_size=60, num_layers=layers, num_heads=heads, hidden_dim=dim, intermediate_dim=4 * dim
    )
    return Case(config, seed=seed, batch=4, time=24, kind="left", embedding_std=embedding_std)


CASES = [case(seed, embedding_std=(1.0, 2e-3)[seed % 2]) for seed in range(6)]


def errors_of(mutant, dtype=np.float32, name="logits"):
    """Errors of a model with the mistake in real arithmetic, and the largest Z in the kit."""
    errors, worst = [], 0.0
    for now in CASES:
        got = mutant(now.config, now.params, dtype=dtype).run(now.token_ids, now.is_real)[name].astype(np.float64)
        errors.append(got - truth(now).values[name])
        worst = max(worst, judge(now, TIERS["float32"], {name: got})[0].z)
    return errors, worst


@pytest.mark.clause("NUM-12")
def test_a_mistake_below_the_noise_is_named():
    errors, worst = errors_of(ShortGelu)
    assert worst < LIMIT, "no single case detects it"
    first, *others = project(CASES, TIERS["float32"], errors, KNOWN)
    assert first.name == "ShortGelu"
    assert first.explains
    assert first.value == pytest.approx(1.0, abs=5 * first.standard_error)
    assert not any(other.explains for other in others)


@pytest.mark.parametrize("mutant", [LargerEpsilon, NoOutputBias])
def test_a_mistake_above_the_noise_is_named(mutant):
    errors, worst = errors_of(mutant)
    assert worst > LIMIT
    explaining = [a for a in project(CASES, TIERS["float32"], errors, KNOWN) if a.explains]
    assert [a.name for a in explaining] == [mutant.__name__]
    assert explaining[0].value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.clause("NUM-12")
def test_nothing_is_named_where_nothing_is_wrong():
    amplitudes = project(CASES, TIERS["float32"], errors_of(InstrumentedModel)[0], KNOWN)
    assert {a.name for a in amplitudes} == {"ShortGelu", "LargerEpsilon", "NoOutputBias"}
    assert [a for a in amplitudes if a.explains or abs(a.value) > 5 * a.standard_error] == []


@pytest.mark.slow
def test_the_standard_error_is_that_of_correct_runs():
    """Amplitudes of correct float32 models of other weights, in standard errors: about one."""
    scores = []
    for seed in range(30):
        now = [case(100 + seed)]
        got = InstrumentedModel(now[0].config, now[0].params, dtype=np.float32).run(now[0].token_ids, now[0].is_real)[
            "logits"
        ]
        amplitudes = project(now, TIERS["float32"], [got - truth(now[0]).values["logits"]], KNOWN[:2])
        scores += [a.value / a.standard_error for a in amplitudes]
    assert 0.2 < np.sqrt(np.mean(np.square(scores))) < 1.5
    assert np.abs(scores).max() < 5


def test_other_intermediates_and_double_precision():
    name = "layers.0.attention.probabilities"
    errors, _ = errors_of(LargerEpsilon, np.float64, name)
    first = project(CASES, TIERS["float64"], errors, KNOWN, name)[0]
    assert (first.name, first.explains) == ("LargerEpsilon", True)


@pytest.mark.parametrize(
    ("amplitude", "explains"),
    [
        (Amplitude("clear, one, and nothing left", 1.01, 0.01, 3.0), True),
        (Amplitude("not clear", 1.0, 0.3, 3.0), False),
        (Amplitude("clear, but not one", 0.7, 0.01, 3.0), False),
        (Amplitude("something else is wrong, too", 1.0, 0.01, 50.0), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_when_a_mistake_explains_an_error(amplitude, explains):
    assert amplitude.explains is explains
