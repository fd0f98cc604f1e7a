"""Every installed backend has the properties of the conformance kit; `bloomref conform --backend` asks more cases."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.backends.backend_properties import BACKEND_PROPERTIES
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Inconclusive
from bloomref.conformance.oracle.budgets import LIMIT, judge
from bloomref.conformance.properties import PROPERTIES, Property
from bloomref.conformance.run.results import Counts
from bloomref.conformance.run.runner import Runner, applies, lacking
from bloomref.conformance.subject import Subject
from bloomref.dtypes import cast, dtype_policy
from bloomref.runtime import registry
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch

WITH_THE_ORACLE = ("logits", "hidden", "pieces")
WITH_ITSELF = ("cache", "causality", "padding", "rows", "shift", "repeat", "empty")
ASKED = {name: PROPERTIES[name] for name in (*WITH_THE_ORACLE, *WITH_ITSELF)} | BACKEND_PROPERTIES


def config(heads: int, width: int, inner: int, vocabulary: int, layers: int = 1, **changes: Any) -> BloomConfig:
    sizes = {"vocabulary_size": vocabulary, "num_layers": layers, "num_heads": heads, "hidden_dim": heads * width}
    return BloomConfig(**sizes, intermediate_dim=inner, **changes)


POST_NORM = {"apply_residual_connection_post_layernorm": True}
UNTIED = {"tie_word_embeddings": False}
EDGES = (
    Case(config(1, 1, 3, 45), seed=3, time=20, name="1 head of 1"),
    Case(config(1, 96, 401, 70), seed=4, time=40, kind="left", embedding_std=2e-3, name="1 head of 96"),
    Case(config(3, 80, 333, 101, **UNTIED), seed=5, time=33, kind="holes", cuts=(32,), name="3 heads of 80"),
    Case(config(9, 33, 260, 64), seed=6, time=27, kind="right", cuts=(9,), name="9 heads of 33"),
    Case(config(12, 64, 515, 65), seed=7, batch=3, time=13, kind="padding row", cuts=(4, 12), name="12 heads of 64"),
    Case(config(16, 16, 77, 50, **POST_NORM), seed=8, time=129, kind="holes", cuts=(128,), name="16 heads of 16"),
    Case(config(16, 7, 450, 31), seed=9, batch=1, time=300, gain=0.3, cuts=(257,), name="16 heads of 7"),
    Case(config(3, 33, 100, 41, 2, **UNTIED), seed=10, time=300, kind="holes", name="3 heads of 33, long"),
)
"""Sizes next to those of tiles: of vectors, of matrices, and of the cache."""
SMALL = Case(config(3, 5, 11, 40, 2, **UNTIED), seed=1, time=7, kind="left", cuts=(3, 6), name="small")


def skip_what_is_not_asked(prop: Property, subject: Subject) -> None:
    if prop.name in WITH_THE_ORACLE and (subject.implementation.name, subject.dtype) == (registry.REFERENCE, "float64"):
        pytest.skip("the oracle is the reference in float64; `blocks` compares it with the instrumented model")
    reason = lacking(prop, subject)
    if reason is not None:
        pytest.skip(str(reason))


def ask(prop: Property, subject: Subject, examples: int, seed: int = 0) -> None:
    skip_what_is_not_asked(prop, subject)
    counts = Counts(prop.name, subject.dtype)
    drawn = max(2, min(examples, settings.default.max_examples))  # the first is the plainest case
    Runner(drawn * prop.share, seed).draw(prop, subject, counts)
    assert counts.passed or counts.inconclusive
    assert counts.worst <= LIMIT


@pytest.mark.parametrize("name", ["logits", "pieces", "blocks"])
def test_a_small_case(subject: Subject, name: str) -> None:
    skip_what_is_not_asked(ASKED[name], subject)
    assert ASKED[name].check(subject, SMALL) <= LIMIT


@pytest.mark.parametrize("prop", ASKED.values(), ids=ASKED)
def test_property(subject: Subject, prop: Property) -> None:
    ask(prop, subject, examples=4)


@pytest.mark.slow
@pytest.mark.parametrize("prop", ASKED.values(), ids=ASKED)
def test_property_on_many_cases(subject: Subject, prop: Property) -> None:
    ask(prop, subject, examples=25, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDGES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["logits", "pieces", "blocks", "bits", "state"])
def test_sizes_next_to_those_of_tiles(subject: Subject, name: str, case: Case) -> None:
    prop = ASKED[name]
    skip_what_is_not_asked(prop, subject)
    assert applies(prop, case)
    case = replace(case, weights="float32" if subject.dtype in ("float32", "float64") else "bfloat16")
    with suppress(Inconclusive):  # in 16 bits, 300 positions
        assert prop.check(subject, case) <= LIMIT


@pytest.mark.clause("BKD-12")
def test_slopes_come_from_the_vocabulary(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With slopes that are three times as steep everywhere, the results are the oracle's for these slopes."""
    case = Case(config(3, 5, 11, 40, 2), seed=1, time=7, kind="left", name="usual slopes")
    subject = Subject(Backend(backend), "float32")
    before = subject.ask(case, "hidden", case.token_ids, case.is_real)
    slopes = alibi.slopes
    monkeypatch.setattr(alibi, "slopes", lambda *arguments: 3 * slopes(*arguments))
    steep = replace(case, name="steep slopes")
    after = Subject(Backend(backend), "float32").ask(steep, "hidden", case.token_ids, case.is_real)
    assert np.abs(after - before)[case.is_real].max() > 1e-2
    [judgement] = judge(steep, subject.tier, {"final_norm": after})
    assert judgement.verdict == "pass"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_policy_gives_the_bits_of_weights_in_its_compute_dtype(backend: str, policy: str) -> None:
    names, case = dtype_policy(policy), Case(config(3, 16, 40, 410, 1, **UNTIED), seed=21, time=30, weights="float32")
    if reason := registry.why_unsupported(backend, case.config, names):
        pytest.skip(reason)
    batch, single = TokenBatch(case.token_ids, case.is_real), np.dtype(np.float32)
    rounded = case.params.map(lambda w: cast(cast(w, single), names.compute_dtype))
    mixed = Engine(case.params, case.config, names, backend)
    narrow = Engine(rounded, case.config, dtype_policy(names.compute_dtype), backend)
    assert mixed.hidden(batch).tobytes() == narrow.hidden(batch).tobytes()
