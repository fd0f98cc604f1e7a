"""The example in C, docs/examples/bloom.c, through every property of the kit."""

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.program import Program
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import Subject, named_weights
from bloomref.conformance.tags import tags_of
from bloomref.conformance.vectors.ask import ask_all
from bloomref.errors import InvalidInput, Unsupported

ROOT = Path(__file__).parents[2]
CONFIG = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=3, hidden_dim=6, intermediate_dim=10)
CASE = Case(CONFIG, batch=2, time=4, kind="left")


@pytest.fixture(scope="module")
def bloom(tmp_path_factory) -> Program:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: gcc, cc or clang")
    binary = tmp_path_factory.mktemp("bloom") / "bloom"
    flags = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
    subprocess.run([compiler, *flags, "-o", binary, ROOT / "docs/examples/bloom.c", "-lm"], check=True)
    return Program(shlex.quote(str(binary)))


def model_of(seed: int, **changes: object) -> BloomConfig:
    base = CONFIG.replace(vocabulary_size=11 + seed, num_layers=2)
    return base.replace(**changes)


CASES = [
    Case(model_of(0), kind="left", time=9, cuts=(1, 2, 7), embedding_std=3e-3, name="left padding"),
    Case(model_of(1, num_heads=12, hidden_dim=24), kind="holes", batch=3, time=13, cuts=(4,), name="12 heads, holes"),
    Case(
        model_of(2, apply_residual_connection_post_layernorm=True),
        kind="right",
        gain=2.0,
        name="post-layernorm residual",
    ),
    Case(model_of(3, tie_word_embeddings=False, layer_norm_epsilon=1e-3), kind="padding row", name="untied LM head"),
    Case(model_of(4, num_layers=0), batch=1, time=2, name="no layers"),
    Case(model_of(5, num_heads=1, hidden_dim=5, intermediate_dim=1), time=270, batch=1, cuts=(269,), name="long"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", PROPERTIES)
def test_the_example_in_c(bloom, name, case):
    found = PROPERTIES[name]
    missing = {*found.needs} - bloom.methods
    if missing or case.kind not in found.kinds or case.batch < found.rows or case.time < found.time:
        pytest.skip(f"nothing to ask: it has no {', '.join(missing)}" if missing else "says nothing of such a case")
    found.check(Subject(bloom, "float32"), case)


def test_these_cases_show_much():
    flags = {flag for case in CASES for flag in tags_of(case)}
    assert flags >= {
        "left-pad",
        "right-pad",
        "mask-hole",
        "padding-row",
        "odd-heads",
        "long",
        "post-ln",
        "untied",
        "no-layers",
    }


@pytest.mark.clause("PRG-4", "PRG-5")
def test_the_example_in_c_refuses_and_goes_on(bloom):
    model = bloom.load(CONFIG, named_weights(CONFIG, Case(CONFIG).params), "float32")
    with pytest.raises(InvalidInput, match="not in the vocabulary"):
        model.logits(np.full((1, 2), 7), np.ones((1, 2), bool))
    with pytest.raises(Unsupported, match="float32 only"):
        bloom.load(CONFIG, named_weights(CONFIG, Case(CONFIG).params), "bfloat16")
    bloom.process.ask({"request": "load", "more": 1, **{k: v for k, v in model._requests[0].items() if k != "request"}})
    got = model.logits(CASE.token_ids, CASE.is_real)
    np.testing.assert_allclose(got[CASE.is_real], truth(CASE).values["logits"][CASE.is_real], rtol=0, atol=1e-5)


@pytest.mark.clause("PRG-14")
def test_the_example_in_c_answers_vectors(bloom):
    counts = Counts("vectors", "float32")
    for topic in ("alibi", "mlp", "cache"):
        ask_all(Subject(bloom, "float32"), topic, Waivers(), counts)
    assert (counts.passed, counts.failed, counts.not_asked) == (37, 0, 0)


def test_the_example_in_c_is_short():
    assert len((ROOT / "docs/examples/bloom.c").read_text("utf-8").splitlines()) < 300
