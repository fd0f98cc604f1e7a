"""The proof of the kit: a sample of it in seconds, all of it among the slow tests, and what is committed."""

import json

import pytest

from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES, NO_INTERMEDIATE, get_mistake
from tools import mutation_score
from tools.mutation_testing import plant

SAMPLE = [
    "no-embedding-norm",
    "naive-slopes",
    "qkv-bias-in-blocks",
    "padding-ignored",
    "positions-by-cumsum",
    "prefix-mask-forgotten",
    "post-norm-ignored",
    "float-ids-truncated",
    "lora-b-in-blocks",
]


@pytest.mark.slow
def test_a_sample_is_found_and_its_equivalents_are_not():
    sample = [get_mistake(name) for name in SAMPLE]
    short = [case for case in FIXED_CASES if case.time <= 24 and case.config.num_heads <= 12]
    found = plant([*sample, *EQUIVALENTS[:2]], "float32", examples=1, pinned=short)
    assert [kill.mistake.name for kill in found if kill.found_by] == SAMPLE
    assert all("raised" not in kill.because for kill in found)


def test_the_page_is_that_of_the_committed_numbers():
    told = json.loads((mutation_score.ROOT / mutation_score.JSON).read_text("utf-8"))
    page = (mutation_score.ROOT / mutation_score.PAGE).read_text("utf-8")
    for table in (mutation_score.summary, mutation_score.mistakes_table, mutation_score.equivalents_table):
        assert table(told) in page
    assert [kill["name"] for kill in told["mistakes"]["float32"]] == [known.name for known in MISTAKES]
    assert [kill["name"] for kill in told["equivalents"]["float32"]] == [known.name for known in EQUIVALENTS]


def test_the_committed_proof_holds():
    told = json.loads((mutation_score.ROOT / mutation_score.JSON).read_text("utf-8"))
    found = told["mistakes"]["float32"]
    assert len(found) >= 60
    assert [kill["name"] for kill in found if not kill["found_by"]] == []
    assert [kill["name"] for kills in told["equivalents"].values() for kill in kills if kill["found_by"]] == []
    assert sum(entry["named"][:1] == [entry["name"]] for entry in told["naming"]) >= 40
    late = [e for e in told["naming"] if not e["first_is_right"] and "pieces" not in get_mistake(e["name"]).needs]
    assert late == []


def test_what_is_new_joins_what_was_proven_before():
    told = json.loads((mutation_score.ROOT / mutation_score.JSON).read_text("utf-8"))
    new = ("lora-alpha-not-divided", "lora-merged")
    before = {"examples": 1, "catalogue": {k: v for k, v in told["catalogue"].items() if k not in new}}
    for kind in ("mistakes", "equivalents"):
        before[kind] = {dtype: [k for k in kills if k["name"] not in new] for dtype, kills in told[kind].items()}
    before["naming"] = [entry for entry in told["naming"] if entry["name"] not in new]
    found = mutation_score.completed(before, tell=lambda _: None)
    assert list(found["catalogue"]) == list(told["catalogue"])
    for kind in ("mistakes", "equivalents"):
        for dtype, kills in told[kind].items():
            assert [k["name"] for k in found[kind][dtype]] == [k["name"] for k in kills]
            assert [k for k in found[kind][dtype] if k["name"] not in new] == before[kind][dtype]
    assert [entry["name"] for entry in found["naming"]] == [entry["name"] for entry in told["naming"]]
    assert next(k for k in found["mistakes"]["float32"] if k["name"] == new[0])["found_by"] == "lora"


@pytest.mark.slow
def test_all_of_it():
    told = mutation_score.prove(MISTAKES, EQUIVALENTS, examples=20)
    assert [kill["name"] for kill in told["mistakes"]["float32"] if not kill["found_by"]] == []
    assert [kill["name"] for kills in told["equivalents"].values() for kill in kills if kill["found_by"]] == []
    assert len(told["naming"]) == sum(known.first != NO_INTERMEDIATE for known in MISTAKES)
    assert sum(entry["named"][:1] == [entry["name"]] for entry in told["naming"]) >= 40
