"""The mutation score of the kit: the committed numbers, and a sample of them run again."""

import json

import pytest

from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES, NO_INTERMEDIATE, get_mistake
from tools import mutation_score, vector_mutation_score
from tools.mutation_testing import detect

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
def test_a_sample_is_detected_and_equivalents_pass():
    sample = [get_mistake(name) for name in SAMPLE]
    short = [case for case in FIXED_CASES if case.time <= 24 and case.config.num_heads <= 12]
    detections = detect([*sample, *EQUIVALENTS[:2]], "float32", examples=1, pinned=short)
    assert [each.mistake.name for each in detections if each.found_by] == SAMPLE
    assert all("raised" not in each.because for each in detections)


def test_the_page_shows_the_committed_numbers():
    proof = mutation_score.read()
    page = (mutation_score.ROOT / mutation_score.PAGE).read_text("utf-8")
    for table in (mutation_score.summary, mutation_score.mistakes_table, mutation_score.equivalents_table):
        assert table(proof) in page


def test_the_page_shows_the_score_of_the_vectors():
    scores = json.loads((mutation_score.ROOT / vector_mutation_score.JSON).read_text("utf-8"))
    page = (mutation_score.ROOT / vector_mutation_score.PAGE).read_text("utf-8")
    assert vector_mutation_score.table(scores) in page
    assert all(each["rejected"] == [] and each["equivalents"] == len(EQUIVALENTS) for each in scores.values())
    known = {each.name for each in MISTAKES if each.dtype == "float32"}
    assert {each["mistakes"] for each in scores.values()} == {len(known)}
    assert all(known.issuperset(each["undetected"]) for each in scores.values())


def test_the_committed_proof_covers_the_catalogue_and_holds():
    committed = json.loads((mutation_score.ROOT / mutation_score.JSON).read_text("utf-8"))
    assert committed["catalogue"] == {
        known.name: mutation_score.described(known) for known in (*MISTAKES, *EQUIVALENTS)
    }
    for dtype in ("float32", "bfloat16"):
        assert names(committed["mistakes"][dtype]) == [m.name for m in MISTAKES if m.dtype != mutation_score.WIDER]
    assert names(committed["mistakes"][mutation_score.WIDER]) == [
        m.name for m in MISTAKES if m.dtype == mutation_score.WIDER
    ]
    for dtype in mutation_score.DTYPES:
        assert names(committed["equivalents"][dtype]) == [known.name for known in EQUIVALENTS]
    assert names(committed["naming"]) == [known.name for known in MISTAKES if known.first != NO_INTERMEDIATE]
    assert_holds(committed)


def names(entries):
    return [entry["name"] for entry in entries]


def assert_holds(proof):
    for dtype in ("float32", mutation_score.WIDER):
        assert names(entry for entry in proof["mistakes"][dtype] if not entry["found_by"]) == []
    assert names(entry for entries in proof["equivalents"].values() for entry in entries if entry["found_by"]) == []
    assert sum(entry["named"][:1] == [entry["name"]] for entry in proof["naming"]) >= 170
    late = [entry for entry in proof["naming"] if not entry["first_is_right"]]
    assert [entry["name"] for entry in late if "pieces" not in get_mistake(entry["name"]).needs] == []


@pytest.mark.slow
def test_new_mistakes_are_added_to_the_proof():
    proof = mutation_score.read()
    new = ("lora-alpha-not-divided", "lora-merged")
    before = {"examples": 1, "catalogue": {k: v for k, v in proof["catalogue"].items() if k not in new}}
    for kind in ("mistakes", "equivalents"):
        before[kind] = {dtype: [e for e in entries if e["name"] not in new] for dtype, entries in proof[kind].items()}
    before["naming"] = [entry for entry in proof["naming"] if entry["name"] not in new]
    completed = mutation_score.completed(before, report=lambda _: None)
    assert list(completed["catalogue"]) == list(proof["catalogue"])
    for kind in ("mistakes", "equivalents"):
        for dtype, entries in proof[kind].items():
            assert names(completed[kind][dtype]) == names(entries)
            assert [entry for entry in completed[kind][dtype] if entry["name"] not in new] == before[kind][dtype]
    assert names(completed["naming"]) == names(proof["naming"])
    detected = {entry["name"]: entry["found_by"] for entry in completed["mistakes"]["float32"]}
    assert detected[new[0]] == "lora"
