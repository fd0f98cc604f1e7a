"""Each property holds for the instrumented model, and detects the mistake that it is about."""

import re
from dataclasses import replace

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance import implementation
from bloomref.conformance.adapters.installed_backend import Backend, BackendModel
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import public_api
from bloomref.conformance.checks.outcome import Failure, Inconclusive, code
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.implementation import OPTIONAL_METHODS
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.properties import PROPERTIES, Property
from bloomref.conformance.run.results import Counts, Report
from bloomref.conformance.run.runner import Runner, Shrinking, applies, lacking
from bloomref.conformance.subject import PROBE, Subject
from bloomref.errors import Unsupported
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.lora.adapter import DENSE_LAYERS

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
CASE = Case(CONFIG, seed=3, batch=3, time=12, kind="holes", cuts=(5, 9))


ADAPTERS = {"peft": Lora((*LINEARS, EMBEDDING)), "keras": Lora(tuple(DENSE_LAYERS), form="keras")}


def case_for(prop: Property) -> Case:
    if prop.adapter:
        return replace(CASE, kind="real", lora=ADAPTERS[prop.adapter])
    return CASE if "holes" in prop.kinds else replace(CASE, kind="left")


# --- one mistake for each property ---------------------------------------------------------------------------------


class Relu(InstrumentedModel):
    def gelu(self, x):
        return np.maximum(x, 0.0)


class NoFinalNorm(InstrumentedModel):
    def final_norm(self, x):
        return x


class WrongSlopes(InstrumentedModel):
    def slopes(self):
        return super().slopes()[::-1]


class WrongPlaceInCache(InstrumentedModel):
    def update_cache(self, cache, start, key, value):
        return super().update_cache(cache, start - (start > 0), key, value)


class LengthMatters(InstrumentedModel):
    def new_cache(self, batch, capacity):
        self.capacity = capacity
        return super().new_cache(batch, capacity)

    def scale(self):
        return super().scale() * (1.0 + 1e-3 * self.capacity)


class SeesTheNext(InstrumentedModel):
    def causal(self, key, query):
        return key <= query + 1


class SeesPadding(InstrumentedModel):
    def visible(self, is_real, start):
        return super().visible(np.ones_like(is_real), start)


class RowsMix(InstrumentedModel):
    def final_norm(self, x):
        return super().final_norm(x) + 1e-3 * x.mean(axis=0)


class PositionVectors(InstrumentedModel):
    def embedding_lookup(self, token_ids):
        return super().embedding_lookup(token_ids) + 0.01 * np.outer(np.arange(token_ids.shape[1]), np.arange(12))


class DeletesHoles(InstrumentedModel):
    def positions(self, is_real):
        return (is_real.cumsum(axis=1) - 1) * is_real


class Drifts(InstrumentedModel):
    calls = 0

    def head(self, hidden):
        self.calls += 1
        return super().head(hidden) * (1.0 + 2.0**-50 * self.calls)


class Overwrites(InstrumentedModel):
    def embedding_lookup(self, token_ids):
        embedded = super().embedding_lookup(token_ids)
        token_ids[:] = 0
        return embedded


class NoMaskIsAllPadding(InstrumentedModel):
    def accept(self, token_ids, padding_mask=None):
        return super().accept(token_ids, np.zeros_like(token_ids) if padding_mask is None else padding_mask)


class ThresholdsMasks(InstrumentedModel):
    def accept(self, token_ids, padding_mask=None):
        return super().accept(token_ids, None if padding_mask is None else np.asarray(padding_mask) > 0.5)


class SignedIdsOnly(InstrumentedModel):
    def accept(self, token_ids, padding_mask=None):
        if np.asarray(token_ids).dtype.kind != "i":
            raise RuntimeError("expected int64")
        return super().accept(token_ids, padding_mask)


class NothingEmpty(InstrumentedModel):
    def accept(self, token_ids, padding_mask=None):
        return super().accept(np.asarray(token_ids).reshape(-1, max(1, np.shape(token_ids)[1])), padding_mask)


class ClipsIds(InstrumentedModel):
    def accept(self, token_ids, padding_mask=None):
        return super().accept(np.clip(token_ids, 0, self.config.vocabulary_size - 1), padding_mask)


class Unscaled(InstrumentedModel):
    def part(self, key, part):
        return replace(super().part(key, part), scale=1.0)


class FirstCallOnly(InstrumentedModel):
    def adapt(self, owner, attribute, x, y):
        return y if self.start else super().adapt(owner, attribute, x, y)


class SharesFirstHead(InstrumentedModel):
    def part(self, key, part):
        part = super().part(key, part)
        return replace(part, a=part.a[:, [0, 0, 0]]) if part.kind == "heads" else part


class ScalesByAlpha(InstrumentedModel):
    def part(self, key, part):
        part = super().part(key, part)
        return replace(part, scale=part.scale * part.rank)


class ChangesTheBase(InstrumentedModel):
    def adapted(self, params):
        scale = 1.0 if self.adapter is None else 1.0 + 2.0**-40
        return super().adapted(params.map(lambda array: array * scale))


class ForgetsScaleOfFactors(InstrumentedModel):
    def of_part(self, part, dy):
        return super().of_part(replace(part, scale=1.0) if part.kind == "matrix" else part, dy)


class SumsHeadsOfFactors(InstrumentedModel):
    def factors_vjp(self, part, x, dy):
        da, db = super().factors_vjp(part, x, dy)
        return (da[:, :, [1, 0, 2]], db) if part.kind == "heads" else (da, db)


class StepOfZeros(InstrumentedModel):
    def step(self, caches, token_ids, is_real, start):
        return 0.0 * super().step(caches, token_ids, is_real, start)


class TokenConstant(InstrumentedModel):
    def choose(self, scores, choice, row, n):  # noqa: ARG002
        return 5


class UnmergeByAddition(InstrumentedModel):
    def unmerged(self, merged, storage):  # noqa: ARG002
        return merged


class WrongGradient(BackendModel):
    def loss_and_gradients(self, *arguments):
        loss, by_name = super().loss_and_gradients(*arguments)
        return loss, by_name | {"transformer.ln_f.weight": by_name["transformer.ln_f.weight"] * 1.00001}


class NoGradient(BackendModel):
    def loss_and_gradients(self, *arguments):
        loss, by_name = super().loss_and_gradients(*arguments)
        return loss, {key: array for key, array in by_name.items() if key != "transformer.ln_f.bias"}


class WrongLoss(BackendModel):
    def loss_and_gradients(self, *arguments):
        loss, by_name = super().loss_and_gradients(*arguments)
        return loss * 1.00001, by_name


class TracedAdapter(Backend):
    """An implementation by a given subclass of the instrumented model."""

    def __init__(self, model_class):
        super().__init__()
        self.model_class = model_class

    def load(self, config, weights, dtype):
        return self.model_class(super().load(config, weights, dtype).backbone)


MISTAKES = [
    ("logits", Relu),
    ("hidden", NoFinalNorm),
    ("intermediates", WrongSlopes),
    ("pieces", WrongPlaceInCache),
    ("trace-pieces", WrongPlaceInCache),
    ("cache", WrongPlaceInCache),
    ("cache", LengthMatters),
    ("causality", SeesTheNext),
    ("padding", SeesPadding),
    ("rows", RowsMix),
    ("shift", PositionVectors),
    ("hole", DeletesHoles),
    ("repeat", Drifts),
    ("repeat", Overwrites),
    ("masks", NoMaskIsAllPadding),
    ("id-dtypes", SignedIdsOnly),
    ("empty", NothingEmpty),
    ("refusals", ClipsIds),
    ("refusals", ThresholdsMasks),
    ("lora", Unscaled),
    ("lora", FirstCallOnly),
    ("lora-heads", SharesFirstHead),
    ("lora-itself", ScalesByAlpha),
    ("lora-itself", ChangesTheBase),
    ("step", StepOfZeros),
    ("tokens", TokenConstant),
    ("merge", UnmergeByAddition),
    ("lora-gradients", ForgetsScaleOfFactors),
    ("lora-heads-gradients", SumsHeadsOfFactors),
]


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_a_property_finds_its_mistake(name, mistake):
    prop = PROPERTIES[name]
    case = replace(case_for(prop), kind="real") if name == "masks" else case_for(prop)
    with pytest.raises(Failure) as caught:
        prop.check(Subject(InstrumentedImplementation(mistake), "float64"), case)
    assert caught.value.clauses == prop.clauses


@pytest.mark.parametrize("mistake", [WrongGradient, NoGradient, WrongLoss])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_wrong_gradient_is_found(mistake, dtype):
    assert PROPERTIES["gradients"].check(Subject(Backend(), dtype), CASE) < 5.0
    with pytest.raises(Failure, match="gradient"):
        PROPERTIES["gradients"].check(Subject(TracedAdapter(mistake), dtype), CASE)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("prop", PROPERTIES.values(), ids=lambda prop: prop.name)
def test_a_property_holds_for_the_reference(prop, dtype):
    assert prop.check(Subject(InstrumentedImplementation(), dtype), case_for(prop)) < 5.0


@pytest.mark.clause("CNF-1")
def test_every_number_is_judged_by_the_budget(monkeypatch):
    """Without a limit, no difference of numbers fails."""
    monkeypatch.setattr("bloomref.conformance.oracle.budgets.LIMIT", float("inf"))
    PROPERTIES["lora"].check(Subject(InstrumentedImplementation(Unscaled), "float32"), case_for(PROPERTIES["lora"]))
    for name in ("logits", "hidden", "intermediates", "pieces", "cache", "padding", "rows"):
        PROPERTIES[name].check(Subject(InstrumentedImplementation(Relu), "float32"), CASE)


def test_every_property_has_its_mistake_clauses_and_known_methods():
    assert {name for name, _ in MISTAKES} | {"gradients"} == set(PROPERTIES)
    for prop in PROPERTIES.values():
        assert prop.clauses, prop.name
        assert set(prop.needs) <= set(OPTIONAL_METHODS), prop.name


NEEDS_ANOTHER_SENTENCE = re.compile(r"\b(so (is|are|does|do)|they|them|it|likewise|ditto|the same for|these|those)\b")


def test_what_a_property_says_reads_alone():
    """A failure prints one sentence: no pronoun in it refers to the sentence of another property."""
    for prop in PROPERTIES.values():
        assert not NEEDS_ANOTHER_SENTENCE.search(prop.says), prop.says
        assert len(prop.says.split()) >= 5, prop.says
    for says in ("so are the final hidden states", "so are they with one of KerasHub", "it is refused"):
        assert NEEDS_ANOTHER_SENTENCE.search(says)


def test_everything_that_must_be_refused_is_another_thing():
    names = [what for what, _, _ in public_api.illegal(CASE)]
    assert len(set(names)) == len(names) == 9


# --- reports -------------------------------------------------------------------------------------------------------


@pytest.mark.clause("CNF-6")
def test_a_failure_says_everything_needed_to_repeat_it():
    with pytest.raises(Failure) as caught:
        PROPERTIES["logits"].check(Subject(InstrumentedImplementation(Relu), "float32"), CASE)
    text = str(caught.value)
    for part in ("logits: logits equal", "MOD-5", "float32", "row ", "position ", "limit 5", "rms error", code(CASE)):
        assert part in text
    again = eval(code(caught.value.case), {"Case": Case, "BloomConfig": BloomConfig})
    assert again == CASE


@pytest.mark.clause("CNF-7")
def test_what_an_implementation_raises_is_its_failure_and_what_the_kit_raises_is_not():
    class Broken(InstrumentedModel):
        def scale(self):
            raise ZeroDivisionError("here")

    with pytest.raises(Failure, match="the implementation raised ZeroDivisionError: here") as caught:
        PROPERTIES["logits"].check(Subject(InstrumentedImplementation(Broken), "float32"), CASE)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(AttributeError):  # an attribute that does not exist is a mistake of the kit
        Property("bad", "", (), lambda _subject, case: case.nothing).check(
            Subject(InstrumentedImplementation(), "float32"), CASE
        )


@pytest.mark.clause("CNF-2")
def test_what_drowns_in_rounding_is_inconclusive_and_counted():
    drowned = Judgement("logits", "inconclusive", 0.0, (0, 0), "too much rounding")
    prop = Property("drowned", "", (), lambda _subject, _case: [drowned])
    subject, counts = Subject(InstrumentedImplementation(), "float32"), Counts("drowned", "float32")
    with pytest.raises(Inconclusive, match="too much rounding"):
        prop.check(subject, CASE)
    Runner().ask(prop, subject, CASE, counts)
    assert (counts.passed, counts.inconclusive, counts.verdict) == (0, 1, "inconclusive")
    assert counts.reasons == {"inconclusive": {"too much rounding": 1}}
    report = Report("x", {}, ("float32",), ("drowned",))
    report.add(counts)
    assert report.verdict("float32") == "not checked"
    assert "1 inconclusive" in "\n".join(report.lines())


# --- the runner ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("CNF-5")
def test_the_same_seed_asks_the_same_questions():
    def asked(seed: int) -> list[Case]:
        recorded: list[Case] = []
        prop = Property("recorded", "", (), lambda _subject, case: recorded.append(case) or [])
        Runner(examples=10, seed=seed).draw(
            prop, Subject(InstrumentedImplementation(), "float32"), Counts("recorded", "float32")
        )
        return recorded

    assert asked(0) == asked(0) != asked(1)


def test_a_failing_case_is_made_small():
    counts = Counts("logits", "float32")
    with pytest.raises(Failure) as caught:
        Runner().draw(PROPERTIES["logits"], Subject(InstrumentedImplementation(Relu), "float32"), counts)
    assert caught.value.case.batch == caught.value.case.time == 1
    assert counts.failed == 1


def test_making_small_ends_after_a_while(monkeypatch):
    shrinking = Shrinking()
    assert not shrinking.is_known(CASE)
    failure = Failure("x", "", (), "float32", CASE, Judgement("logits", "fail", 9.0, (0, 0), ""))
    shrinking.add(failure)
    with pytest.raises(Failure) as caught:
        shrinking.is_known(CASE)
    assert caught.value is failure
    assert not shrinking.is_known(PROBE)
    monkeypatch.setattr("bloomref.conformance.run.runner.SHRINK_SECONDS", -1.0)
    assert shrinking.is_known(PROBE)


@pytest.mark.clause("CNF-3")
def test_what_is_lacking_is_said():
    adapter = InstrumentedImplementation()
    adapter.capabilities = replace(
        adapter.capabilities,
        masks=("real",),
        features=frozenset(),
        max_time=50,
        repeatable=False,
        adapters=("peft",),
        gradients=("float64",),
    )
    subject = Subject(adapter, "float32")
    answers = {name: lacking(prop, subject) for name, prop in PROPERTIES.items()}
    reasons = {name: str(answer) for name, answer in answers.items() if answer is not None}
    assert {name for name, reason in reasons.items() if reason} == {
        "padding",
        "shift",
        "hole",
        "rows",
        "repeat",
        "gradients",
        "lora-gradients",
        "lora-heads-gradients",
        "lora-heads",
    }
    assert reasons["gradients"] == f"{adapter.name} declares no gradients in float32"
    assert all("declares" in reason for reason in reasons.values() if reason)
    assert subject.missing(PROBE) is None
    missing = {case.name: subject.missing(case) for case in FIXED_CASES}
    assert "600 positions" in missing["600 positions"]
    assert "adapters in the form of keras" in missing["LoRA of KerasHub"]
    assert "untied" in missing["untied LM head"]
    assert "masks with left" in missing["left padding"]
    assert "bfloat16 cannot represent" in Subject(InstrumentedImplementation(), "bfloat16").missing(
        replace(PROBE, weights="float32")
    )


def test_an_unavailable_implementation_says_why():
    class Absent(InstrumentedImplementation):
        def load(self, *_):
            raise Unsupported("absent: not installed")

    assert Subject(Absent(), "float32").unavailable() == "absent: not installed"
    assert "declares no int8" in Subject(InstrumentedImplementation(), "int8").unavailable()
    assert Subject(InstrumentedImplementation(), "float32").unavailable() is None


def test_every_property_is_asked_of_a_fixed_case():
    for prop in PROPERTIES.values():
        assert [case for case in FIXED_CASES if applies(prop, case)], prop.name
    assert len({case.name for case in FIXED_CASES}) == len(FIXED_CASES)


def test_former_names_warn():
    with pytest.warns(DeprecationWarning, match="is now called Implementation"):
        assert implementation.Adapter is implementation.Implementation
    subject = Subject(InstrumentedImplementation(), "float32")
    with pytest.warns(DeprecationWarning, match="is now called implementation"):
        assert subject.adapter is subject.implementation
    with pytest.raises(AttributeError, match="no attribute 'Adaptor'"):
        _ = implementation.Adaptor
