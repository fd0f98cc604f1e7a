"""Counts, verdicts and the text of a report; equal failures are one; a part of the kit can be selected."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import RAISED, Failure, Inconclusive
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run import verdicts
from bloomref.conformance.run.counts import WORDS, Counts
from bloomref.conformance.run.failures import IN_FULL, LISTED, failure_lines, groups, occurrence
from bloomref.conformance.run.results import Report
from bloomref.conformance.run.selection import Selection
from bloomref.conformance.run.texts import SHOWN, listed, shape
from bloomref.conformance.subject import PROBE, NotAsked
from bloomref.conformance.suite import command
from bloomref.conformance.suite.kit import Options
from bloomref.errors import InvalidInput, Unsupported

ME = f"{__name__}:{{}}"


class OfTwoHeads(InstrumentedImplementation):
    """Refuses every model of more than two heads."""

    def load(self, config, weights, dtype):
        if config.num_heads > 2:
            raise Unsupported(f"a model of {config.num_heads} heads: at most 2")
        return super().load(config, weights, dtype)


class Raises(InstrumentedModel):
    def scale(self):
        raise ZeroDivisionError("in my own code")


def raises():
    return InstrumentedImplementation(Raises)


class CannotLoad(InstrumentedImplementation):
    def load(self, *_):
        raise TypeError("no such argument")


class LoadsNothing(InstrumentedImplementation):
    def load(self, *_):
        return None


class Talks(InstrumentedImplementation):
    def load(self, *arguments):
        print("debug")
        return super().load(*arguments)


def no_implementation():
    raise OSError("no licence")


@pytest.fixture
def run(capfd, monkeypatch):
    """Run `bloomref conform` in this process: (exit code, standard output)."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def conform(name: str, *only: str, as_json: bool = False, jobs: int = 1, **options: object) -> tuple[int, str]:
        selection = Selection(tuple(only), ())
        named = Options(f"test_report:{name}", dtypes=("float32",), examples=2, selection=selection, **options)
        code = command.conform(named, as_json, False, jobs)
        return code, capfd.readouterr().out

    return conform


# --- counts --------------------------------------------------------------------------------------------------------

OUTCOMES = {
    "passed": lambda: 1.0,
    "failed": Failure("x", "", (), "float32", PROBE, Judgement("logits", "fail", 9.0, (0, 0), "wrong")),
    "inconclusive": Inconclusive("drowned"),
    "refused": Unsupported("no"),
    "not_asked": NotAsked("undeclared"),
}


def record(counts: Counts, outcome: str, covering: tuple[str, ...] = ()) -> None:
    def check() -> float:
        if outcome == "passed":
            return 1.0
        raise OUTCOMES[outcome]

    counts.record(check, covering)


@pytest.mark.clause("CNF-10")
@given(st.lists(st.sampled_from(list(OUTCOMES))))
def test_every_question_is_counted_once_and_with_its_reason(outcomes):
    counts, halves = Counts("x", "float32"), (Counts("x", "float32"), Counts("x", "float32"))
    for i, outcome in enumerate(outcomes):
        record(counts, outcome)
        record(halves[i % 2], outcome)
    assert sum(getattr(counts, name) for name in WORDS) == len(outcomes) == counts.questions
    for outcome in ("inconclusive", "refused", "not_asked"):
        assert sum(counts.reasons.get(outcome, {}).values()) == outcomes.count(outcome) == getattr(counts, outcome)
    halves[0].add(halves[1])
    assert halves[0] == counts
    assert json.loads(json.dumps(counts.to_dict()))["held"] == outcomes.count("passed")


def test_a_waiver_covers_a_failure_and_is_not_blamed_for_a_refusal():
    counts = Counts("x", "float32")
    for outcome in ("failed", "refused", "passed", "not_asked"):
        record(counts, outcome, ("x",))
    assert (counts.waived, counts.failed, counts.refused, counts.not_asked) == (1, 0, 1, 1)
    assert (counts.matched, counts.used) == ({"x": 4}, {"x": 3})


@pytest.mark.clause("CNF-10")
def test_every_cell_that_is_no_pass_has_its_reason_below_the_table():
    report = Report("mine", {}, ("float32",), tuple(OUTCOMES))
    for outcome in OUTCOMES:
        counts = Counts(outcome, "float32")
        for each in ("passed", outcome):
            record(counts, each)
        report.add(counts)
    lines = report.lines()
    assert "inconclusive  1 pass, 1 inconclusive, Z 1" in lines
    assert "inconclusive (float32 1): inconclusive: drowned" in lines
    assert "refused (float32 1): refused: no" in lines
    assert "not_asked (float32 1): not asked: undeclared" in lines
    assert "failed (float32 1): fail: see the failures" in lines


def test_reasons_that_differ_in_numbers_alone_are_one():
    reasons = {f"a model of {n} heads": n for n in (3, 5)} | {"another reason": 9}
    assert listed(reasons) == "another reason (9); a model of 5 heads (8)"
    assert (
        shape("layers.3: 1.2e-05 of 7, -inf") == shape("layers.3: 3e+08 of 1,024, nan") != shape("layers.4: 1 of 2, 3")
    )
    many = {word * 3: 1 for word in "abcdefghij"}
    assert f"{10 - SHOWN} more reasons (--json has all) ({10 - SHOWN})" in listed(many)


# --- verdicts ------------------------------------------------------------------------------------------------------


def counted(**numbers: int) -> Counts:
    return replace(Counts("x", "float32"), **numbers)


@pytest.mark.clause("CNF-11")
@pytest.mark.parametrize(
    ("numbers", "whole", "expected"),
    [
        ({"passed": 1, "inconclusive": 9}, True, "conforms"),
        ({"passed": 1, "waived": 1}, True, "conforms, but for the waivers"),
        ({"passed": 9, "not_asked": 1}, True, "conforms in what it declares"),
        ({"passed": 9, "not_asked": 1, "not_applicable": 1}, True, "conforms"),
        ({"passed": 9, "not_asked": 1, "refused": 1}, True, "conforms in what it answers"),
        ({"passed": 9, "refused": 1, "waived": 1}, True, "conforms in what it answers, but for the waivers"),
        ({"passed": 9, "refused": 1}, False, "conforms in what was asked"),
        ({"passed": 9, "refused": 1, "failed": 1}, True, "does not conform"),
        ({"refused": 9}, True, "not checked"),
        ({}, True, "not checked"),
    ],
)
def test_the_verdict_claims_no_more_than_was_answered(numbers, whole, expected):
    verdict = verdicts.verdict([counted(**numbers)], None, whole)
    assert verdict == expected
    assert verdicts.is_unqualified(verdict) == (expected in ("conforms", "conforms, but for the waivers"))
    assert verdicts.verdict([counted(**numbers)], "it is broken", whole) == "does not conform"


def test_the_bounds_have_shares_and_reasons():
    counts = counted(passed=1000, refused=30, not_asked=5, not_applicable=2)
    counts.reasons = {"refused": {"no": 30}, "not_asked": {"undeclared": 3}, "not_applicable": {"inexact": 2}}
    refused, unasked = verdicts.bounds([counts])
    assert refused == "refused: 30 of 1,033 questions: no (30)"
    assert unasked == "not asked: 3 of 1,033 questions: undeclared (3)"


@pytest.mark.clause("CNF-11")
def test_a_refusal_bounds_the_claim_and_fails_the_run_only_on_request(run, monkeypatch):
    monkeypatch.setattr(Selection, "is_whole", True)  # the other properties refuse as well
    code, text = run("OfTwoHeads", "logits", "hidden")
    assert code == 0
    assert "float32: conforms in what it answers (" in text
    assert re.search(r"refused: (\d+) of \d+ questions: a model of \d+ heads: at most 2", text)
    assert re.search(r"logits \(float32 (\d+)\), hidden \(float32 \1\): refused: a model of ", text)
    code, text = run("OfTwoHeads", "logits", require_all=True)
    assert code == 1
    code, text = run("OfTwoHeads", "logits", require=True)
    assert code == 0


# --- broken before the first answer ----------------------------------------------------------------------------------


@pytest.mark.clause("CNF-12")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CannotLoad", "cannot load the plainest model in float32: TypeError: no such argument"),
        ("LoadsNothing", "expected a model with a method logits, got an object of the class NoneType"),
    ],
)
def test_what_cannot_load_a_model_does_not_conform_in_one_sentence(run, name, sentence):
    code, text = run(name)
    assert code == 1
    assert "float32: does not conform: " in text.splitlines()[-1]
    assert sentence in text.splitlines()[-1]
    assert "Traceback" not in text
    code, text = run(name, as_json=True)
    report = json.loads(text)
    assert code == 1
    assert report["verdicts"] == {"float32": "does not conform"}
    assert sentence in report["problems"]["float32"]
    assert report["properties"] == []


@pytest.mark.clause("CNF-12")
def test_what_breaks_before_it_exists_is_one_sentence(run):
    with pytest.raises(Exception, match="raised OSError before its first question: no licence"):
        run("no_implementation")


def test_what_an_implementation_prints_is_not_in_the_report(run):
    _, text = run("Talks", "masks", as_json=True)
    assert json.loads(text)["implementation"] == "InstrumentedModel"


# --- failures ------------------------------------------------------------------------------------------------------


def failure(name: str, explanation: str, tensor: str = "logits", case: Case = PROBE, dtype: str = "float32") -> Failure:
    return Failure(name, "it holds", (), dtype, case, Judgement(tensor, "fail", 9.0, (0, 0), explanation))


@pytest.mark.clause("CNF-13")
def test_equal_failures_are_told_once_with_the_smallest_case():
    large = replace(PROBE, time=9)
    failures = [
        occurrence(failure("logits", "error 3e-05 (float32)", case=large), "logits", "plain"),
        occurrence(failure("logits", "error 7e-03 (float32)"), "logits", "drawn"),
        occurrence(failure("logits", "error 7e-03 (float64)", dtype="float64"), "logits", "holes"),
        occurrence(failure("hidden", "error 7e-03 (float32)", "final_norm"), "hidden", "drawn"),
    ]
    logits, hidden = groups(failures)
    assert [len(group.members) for group in (logits, hidden)] == [3, 1]
    assert logits.first.origin == "drawn"
    assert logits.lines()[-1] == "  (and 2 more cases: plain, holes in float64)"
    assert hidden.lines()[-1].startswith("  case ")


@pytest.mark.clause("CNF-13")
def test_one_exception_is_one_group_whatever_was_asked():
    failures = [
        occurrence(failure(name, "it raised KeyError: 3", RAISED), name, "drawn")
        for name in ("logits", "hidden", "cache")
    ]
    [group] = groups(failures)
    assert group.lines()[-1] == "  (and 2 more cases: hidden: drawn, cache: drawn)"
    assert not any("Z " in line or "tensor" in line for line in group.lines())


def test_causes_are_told_once_and_many_groups_are_short():
    words = [chr(ord("a") + i) for i in range(IN_FULL + LISTED + 2)]
    failures = [occurrence(failure(f"p{word}", word, word), f"p{word}", "drawn") for word in words]
    lines = failure_lines(failures, lambda _: ["cause    first wrong: attention.scores"])
    assert lines.count("  cause    first wrong: attention.scores") == 1
    assert lines.count("  cause    as of pa") == IN_FULL - 1
    assert lines[-2] == f"p{words[-3]} (float32, drawn): {words[-3]}"
    assert lines[-1] == "and 2 more kinds of failures (--json has all)"


@pytest.mark.clause("CNF-13")
def test_a_failing_run_shows_the_implementation_alone_and_is_short(run):
    code, text = run("raises", "logits", "causality")
    assert code == 1
    told_lines = text[text.index("logits: logits equal") : text.index("property ")].splitlines()
    assert len(told_lines) <= 30
    assert 'raise ZeroDivisionError("in my own code")' in text
    assert "instrumented" not in text.replace("InstrumentedModel", "")
    assert text.count("in my own code") == 2  # the message and the line
    assert "does not conform" in text


@pytest.mark.slow
def test_several_processes_give_the_same_report(run):
    one, two = (run("raises", "logits", "masks", "vectors/mlp", jobs=jobs) for jobs in (1, 2))
    assert one[0] == 1
    assert one == two


# --- selection -----------------------------------------------------------------------------------------------------


def test_a_selection_names_properties_topics_and_fixed_cases():
    lora = Selection(("lora*", "vectors/lora"))
    assert [name for name in PROPERTIES if lora.includes(name)] == [n for n in PROPERTIES if n.startswith("lora")]
    assert lora.includes_topic("lora")
    assert not lora.includes_topic("model")
    assert Selection(("vectors",)).includes_topic("model")
    plain = Selection(cases=("plain",))
    assert [case.name for case in FIXED_CASES if plain.includes_case(case.name)] == ["plain"]
    assert plain.includes("logits")
    assert not plain.includes_drawn("logits")
    assert not plain.includes_topic("model")
    assert Selection().is_whole
    assert not plain.is_whole


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(("logitz",)), "did you mean logits"),
        (Selection(("vectors/lore",)), "did you mean vectors/lora"),
        (Selection(cases=("plane",)), "did you mean plain"),
        (Selection(("xyzzy",)), "--list"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(selection, message):
    with pytest.raises(InvalidInput, match=message):
        selection.check(PROPERTIES, ("lora", "model"))


def test_the_list_has_every_name():
    text = "\n".join(command.names())
    for name in (*PROPERTIES, "blocks", "vectors/lora", *(case.name for case in FIXED_CASES)):
        assert name in text


# --- a program that refuses -------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
for line in sys.stdin:
    r = json.loads(line)
    reply = {}
    if r["request"] == "hello":
        reply = {"protocol": 1, "name": "two-heads", "methods": ["logits", "hidden"]}
    elif r["request"] == "load":
        if r["config"]["n_head"] > 2:
            reply = {"error": {"kind": "Unsupported", "message": "more than two heads"}}
        else:
            weights = {key.removeprefix("transformer."): array for key, array in load_file(r["weights"]).items()}
            model = InstrumentedImplementation().load(BloomConfig.from_hf(r["config"]), weights, r["dtype"])
    else:
        inputs = load_file(r["inputs"])
        save_file({r["request"]: getattr(model, r["request"])(inputs["token_ids"], inputs["is_real"])}, r["outputs"])
    print(json.dumps(reply), flush=True)
"""


@pytest.mark.slow
@pytest.mark.clause("CNF-10", "CNF-11")
def test_a_program_that_refuses_half_of_its_questions_does_not_conform_without_qualification(tmp_path, capfd):
    (tmp_path / "two.py").write_text(PROGRAM, "utf-8")
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'two.py'))}"
    assert command.conform(Options(program=line, dtypes=("float32",), examples=2), as_json=True, verbose=False) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["verdicts"] == {"float32": "conforms in what it answers"}
    refused = sum(row["refused"] for row in report["properties"])
    assert refused > 50
    assert any(
        f"refused: {refused} of" in line and "more than two heads" in line for line in report["bounds"]["float32"]
    )
    for row in report["properties"]:
        assert sum(row["reasons"].values()) == row["refused"] + row["not_asked"] + row["inconclusive"]
    rows = {row["name"]: row["verdict"] for row in report["properties"]}
    assert rows["gradients"] == rows["lora"] == "not asked"
