"""LoRA adapters of the kit: the drawn ones, their factors, and how an implementation receives them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from bloomref import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure, code
from bloomref.conformance.implementation import Capabilities, Waiver
from bloomref.conformance.lora_cases import FORMS, Lora
from bloomref.conformance.mistakes import EQUIVALENTS
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run.results import Counts
from bloomref.conformance.run.runner import Runner, applies, lacking
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.strategies_lora import adapted_cases, adapters
from bloomref.conformance.subject import Subject
from bloomref.dtypes import floating_dtype
from bloomref.errors import Unsupported
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.lora.adapter import DENSE_LAYERS
from bloomref.reference.lora import delta_weight

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
PEFT = Lora((*LINEARS, EMBEDDING), ranks=(("dense", 2),), alphas=(("mlp.dense_h_to_4h", 3.0),), dropout=0.5)
KERAS = Lora(tuple(DENSE_LAYERS), form="keras", rank=2)


def factors(lora: Lora, config: BloomConfig = CONFIG) -> list[np.ndarray]:
    parts = lora.adapter(config).parts.values()
    return [factor for group in parts for part in group for factor in (part.a, part.b)]


# --- what is drawn -------------------------------------------------------------------------------------------------


def drawn(count: int, **options: object) -> list[Case]:
    drawn_cases: list[Case] = []

    @seed(0)  # whatever --hypothesis-seed says, and however this file changes
    @settings(max_examples=count, database=None)
    @given(adapted_cases(**options))
    def draw(case: Case) -> None:
        drawn_cases.append(case)

    draw()
    return drawn_cases


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(case=adapted_cases())
@settings(max_examples=20)
def test_factors_are_exact_in_every_dtype_and_not_zero(dtype, case):
    for factor in factors(case.lora, case.config):
        assert np.array_equal(factor.astype(floating_dtype(dtype)).astype(np.float64), factor)
        assert np.count_nonzero(factor) == factor.size


@pytest.mark.slow
def test_everything_that_mistakes_need_is_drawn():
    loras = [case.lora for case in drawn(300)]
    peft = [lora for lora in loras if lora.form == "peft"]
    assert {lora.form for lora in loras} == set(FORMS)
    assert {name for lora in peft for name in lora.targets} == {*LINEARS, EMBEDDING}
    assert {name for lora in loras if lora.form == "keras" for name in lora.targets} == {*DENSE_LAYERS}
    assert {lora.rslora for lora in peft} == {True, False}
    assert any(lora.dropout for lora in peft)
    assert any(lora.ranks for lora in peft)
    assert any(lora.alphas for lora in peft)
    assert any(case.config.num_layers == 0 for case in drawn(300))


@given(st.sampled_from(FORMS), st.data())
@settings(max_examples=20)
def test_draws_respect_their_limits(form, data):
    able = Capabilities(masks=("real", "left"), features=frozenset({"batch"}))
    case = data.draw(adapted_cases(able, form, max_time=5))
    assert case.lora.form == form
    assert case.time <= 5
    adapter = InstrumentedImplementation()
    adapter.capabilities = replace(able, adapters=FORMS)
    assert Subject(adapter, "float32").missing(case) is None
    assert applies(PROPERTIES["lora" if form == "peft" else "lora-heads"], case)
    assert not applies(PROPERTIES["logits"], case)
    assert data.draw(adapters(CONFIG, form)).form == form


# --- what it does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [PEFT, KERAS], ids=FORMS)
def test_an_adapter_adds_as_much_as_there_is(lora):
    case = Case(CONFIG, time=12, lora=lora)
    plain, adapted = truth(replace(case, lora=None)).values, truth(case).values
    changed = [np.sqrt(np.mean((adapted[k] - v) ** 2) / np.mean(v**2)) for k, v in plain.items() if "output" in k]
    assert 0.3 < min(changed) <= max(changed) < 5.0


@pytest.mark.parametrize("lora", [PEFT, KERAS, replace(PEFT, rslora=True)], ids=["peft", "keras", "rslora"])
def test_copies_are_the_same_at_a_higher_rank_and_no_gain_is_nothing(lora):
    once, twice, nothing = (
        lora.adapter(CONFIG).parts,
        replace(lora, copies=2).adapter(CONFIG).parts,
        replace(lora, gain=0.0).adapter(CONFIG).parts,
    )
    assert once.keys() == twice.keys() == nothing.keys()
    for key, group in once.items():
        for one, two, none in zip(group, twice[key], nothing[key], strict=True):
            assert two.a.size == 2 * one.a.size
            np.testing.assert_allclose(delta_weight(two), delta_weight(one), rtol=1e-13, atol=1e-13)
            assert not none.b.any()
            assert none.a.all()


@pytest.mark.clause("LRA-10", "LRA-11", "LRA-12")
@given(case=adapted_cases())
@settings(max_examples=30)
def test_the_files_say_the_same(case, tmp_path_factory):
    path = case.lora.write(tmp_path_factory.mktemp("adapter"), case.config)
    model = BloomBackbone.from_params(case.config, case.params, "float64")
    model.load_adapter(path)
    got = model.trace({"token_ids": case.token_ids, "padding_mask": case.is_real})
    assert all(got[name].tobytes() == value.tobytes() for name, value in truth(case).values.items())


# --- how it is asked -----------------------------------------------------------------------------------------------


class Files(InstrumentedImplementation):
    """Records the paths that it receives."""

    given: list[Path]

    def load(self, config, weights, dtype):
        model = super().load(config, weights, dtype)
        adapted = model.adapted

        def watched(path):
            assert path.exists()
            self.given.append(path)
            return adapted(path)

        model.adapted = watched
        return model


def test_an_implementation_gets_a_path_that_is_gone_afterwards():
    adapter = Files()
    adapter.given = []
    subject = Subject(adapter, "float32")
    for lora in (PEFT, KERAS):
        PROPERTIES["lora" if lora is PEFT else "lora-heads"].check(subject, Case(CONFIG, lora=lora))
    assert [path.name for path in adapter.given] == ["adapter", "adapter.lora.h5"]
    assert not any(path.exists() for path in adapter.given)


def test_a_model_is_asked_with_its_adapter_and_without_in_turn():
    subject, case = Subject(Backend(), "float64"), Case(CONFIG, lora=PEFT)
    plain = replace(case, lora=None)
    for now in (plain, case, plain, replace(case, lora=KERAS)):
        got = subject.model(now).logits(now.token_ids, now.is_real)
        assert got.tobytes() == truth(now).values["logits"].tobytes()


@pytest.mark.clause("CNF-3")
def test_implementations_without_adapters_are_skipped():
    class Plain:
        def logits(self, token_ids, is_real):
            raise NotImplementedError

    class Without(InstrumentedImplementation):
        def load(self, *_):
            return Plain()

    class Refuses(InstrumentedImplementation):
        def load(self, *arguments):
            model = super().load(*arguments)
            model.adapted = refused
            return model

    def refused(_path):
        raise Unsupported("no peft here")

    assert str(lacking(PROPERTIES["lora"], Subject(Without(), "float32"))) == "InstrumentedModel has no method adapted"
    counts = Counts("lora", "float32")
    Runner(examples=2).draw(PROPERTIES["lora"], Subject(Refuses(), "float32"), counts)
    assert (counts.verdict, counts.refused) == ("refused", 2)
    assert counts.reasons == {"refused": {"no peft here": 2}}


@pytest.mark.clause("CNF-4")
def test_what_is_not_available_says_nothing_of_a_waiver():
    class Refuses(InstrumentedImplementation):
        def load(self, *_):
            raise Unsupported("no peft here")

    waivers, counts = Waivers((Waiver("lora", "as logits"),)), Counts("lora", "float32")
    runner = Runner(waivers=waivers)
    runner.ask(PROPERTIES["lora"], Subject(Refuses(), "float32"), Case(CONFIG, lora=PEFT), counts)
    assert counts.verdict == "refused"
    assert waivers.stale(("float32",), counts.matched, counts.used) == []
    assert len(waivers.stale(("float32",), {}, {})) == 1


def test_an_adapter_that_raises_has_failed_and_the_report_makes_it_again():
    class Broken(InstrumentedImplementation):
        def load(self, *arguments):
            model = super().load(*arguments)
            model.adapted = lambda path: {}[path.name]
            return model

    case = Case(CONFIG, lora=PEFT)
    with pytest.raises(Failure, match="the implementation raised KeyError: 'adapter'") as caught:
        PROPERTIES["lora"].check(Subject(Broken(), "float32"), case)
    assert eval(code(caught.value.case), {"Case": Case, "BloomConfig": BloomConfig, "Lora": Lora}) == case


@pytest.mark.parametrize("known", [known for known in EQUIVALENTS if known.name != "gelu-sqrt-2-over-pi"], ids=str)
def test_equivalents_hold_with_adapters(known):
    for lora, name in ((PEFT, "lora"), (KERAS, "lora-heads")):
        case = Case(CONFIG, seed=4, batch=3, time=9, kind="left", lora=lora)
        assert PROPERTIES[name].check(Subject(InstrumentedImplementation(known.model), "float32"), case) < 5.0


@pytest.mark.clause("LRA-2", "LRA-16")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lora", "lora-heads", "lora-itself"])
def test_the_reference_holds(name, dtype):
    prop = PROPERTIES[name]
    case = Case(CONFIG, seed=5, time=9, cuts=(4, 8), lora=PEFT if prop.adapter == "peft" else KERAS)
    assert prop.check(Subject(Backend(), dtype), case) < 5.0


def test_the_parts_of_heads_are_those_of_heads():
    assert {part.kind for parts in KERAS.adapter(CONFIG).parts.values() for part in parts} == {"heads", "matrix"}
