"""Installed backends as implementations: what they declare, and the methods that they offer."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.implementation import offers
from bloomref.conformance.oracle.budgets import LIMIT, judge, sigma
from bloomref.conformance.oracle.precision import tier_of
from bloomref.conformance.subject import PROBE, Subject
from bloomref.errors import InvalidInput, Unsupported
from bloomref.runtime import registry
from bloomref.runtime.backend import Declaration
from bloomref.runtime.numpy_backend import NumpyBackend, NumpyPrepared

CASE = next(case for case in FIXED_CASES if case.name == "wide")


class Bare:
    """A backend of two dtypes with no optional capability, which declares nothing."""

    name, api_version = "bare", NumpyBackend.api_version
    HIDDEN = ("trace", "params", "hidden_with_dropout")

    def unsupported(self, config, policy):  # noqa: ARG002
        return None if policy.compute_dtype.name in ("float32", "bfloat16") else "only 32 bits and bfloat16"

    def prepare(self, params, config, policy):
        whole = NumpyBackend().prepare(params, config, policy)
        names = [name for name in dir(NumpyPrepared) if name[0] != "_" and name not in self.HIDDEN]
        return SimpleNamespace(**{name: getattr(whole, name) for name in names})


class Declared(Bare):
    name = "declared"
    declaration = Declaration(("float32",), gradients=(), scores="model", repeatable=False, packages=("ml_dtypes",))


@pytest.fixture
def _installed(monkeypatch):
    """Both backends, as if packages provided them."""
    load = registry.load.__wrapped__
    by_name = {"bare": Bare(), "declared": Declared()}
    monkeypatch.setattr(registry, "load", cache(lambda name: by_name.get(name) or load(name)))


@pytest.mark.clause("BKD-22")
@pytest.mark.usefixtures("_installed")
def test_a_backend_is_tested_by_its_declaration():
    able = Backend("declared").capabilities
    assert (able.dtypes, able.trains_in, able.scores, able.repeatable) == (("float32",), (), "model", False)
    assert set(Backend("declared").versions()) == {"bloomref", "ml_dtypes"}
    assert Subject(Backend("numpy"), "bfloat16").tier == tier_of("bfloat16", products="float32")


@pytest.mark.clause("BKD-22")
@pytest.mark.usefixtures("_installed")
def test_without_a_declaration_every_dtype_that_is_not_refused_is_asked():
    assert Backend("bare").capabilities.dtypes == ("float32", "bfloat16")


def test_a_name_of_no_backend_is_refused_and_one_that_is_not_installed_is_loaded_later(monkeypatch):
    with pytest.raises(InvalidInput, match="did you mean numpy"):
        Backend("nunpy").capabilities  # noqa: B018
    monkeypatch.setattr(registry, "load", cache(lambda name: (_ for _ in ()).throw(Unsupported(f"no {name}"))))
    assert Backend("cupy").capabilities.dtypes == Declaration().dtypes


@pytest.mark.usefixtures("_installed")
def test_a_model_offers_what_its_backend_has():
    bare, whole = (Subject(Backend(name), "float32").model(PROBE) for name in ("bare", "numpy"))
    optional = ("trace", "loss_and_gradients")
    assert [offers(whole, name) for name in optional] == [True, True]
    assert [offers(bare, name) for name in optional] == [False, False]
    with pytest.raises(AttributeError, match="backend 'bare' has no trace"):
        bare.trace(PROBE.token_ids, PROBE.is_real)


@pytest.mark.clause("NUM-11")
def test_products_of_float32_have_a_smaller_budget_that_the_reference_keeps():
    """The reference rounds at the ends of a block only (NUM-2): its Z is of the order of 1, not of 0.1."""
    narrow, wide = tier_of("bfloat16"), tier_of("bfloat16", products="float32")
    assert np.median(sigma(CASE, wide)["logits"] / sigma(CASE, narrow)["logits"]) < 0.8
    outputs = Subject(Backend(), "bfloat16").ask(CASE, "trace", CASE.token_ids, CASE.is_real)
    worst = max(judgement.z for judgement in judge(CASE, wide, outputs))
    assert 0.8 < worst < LIMIT / 2


def test_the_tier_of_products_has_a_name_and_words():
    tier = tier_of("float16", products="float32")
    assert (tier.name, tier.where) == ("float16-products", "float16, products of float32")
    assert tier_of("float32", products="float32") is tier_of("float32")
    assert tier_of("bfloat16", "model", "float32") is tier_of("bfloat16", "model")
    with pytest.raises(InvalidInput, match="products: expected 'float32' or 'model'"):
        tier_of("float16", products="float16")
