"""`bloomref diff`: the first intermediate that leaves its budget, the mistake that explains it, and the output."""

import json
import re
import shlex
import sys
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from rich.console import Console

from bloomref.cli import app
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import code
from bloomref.conformance.diff import backward, html_page, report
from bloomref.conformance.diff.case_expression import case_of
from bloomref.conformance.diff.compare import Difference, diff
from bloomref.conformance.diff.measure import Comparison
from bloomref.conformance.diff.operands import Operand, implementation, name_of, operand
from bloomref.conformance.mistakes import Mistake, get_mistake
from bloomref.conformance.mistakes.examples import example
from bloomref.conformance.oracle.precision import tier_of
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.strategies import cases
from bloomref.conformance.strategies_lora import adapted_cases
from bloomref.errors import InvalidInput, Unsupported
from tools.mutation_score import naming

SMALL = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=6, hidden_dim=30, intermediate_dim=40)
CASE = Case(SMALL, seed=3, batch=2, time=10, kind="left")
SAMPLE = [
    "qkv-in-blocks",
    "no-embedding-norm",
    "gelu-quick",
    "alibi-restarted",
    "head-of-one-rank",
    "epsilon-1e-6",
    "matrices-in-int8",
]


def compare(a: str, b: str = "oracle", case: Case = CASE, dtype: str = "float32") -> Difference:
    with np.errstate(all="ignore"):
        return diff(case, operand(a, dtype, case), operand(b, dtype, case))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_right_implementation_agrees_with_the_oracle(dtype):
    difference = compare("numpy", dtype=dtype)
    assert not difference.differ
    assert difference.explanations == []
    assert len(difference.comparisons) == len(truth(CASE).values)


@pytest.mark.slow
def test_two_right_implementations_agree_with_each_other():
    assert not compare("numpy", "mistake:softmax-in-parts").differ
    assert not compare("numpy@bfloat16", "numpy").differ


@pytest.mark.parametrize("name", [*SAMPLE[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLE[1:])])
def test_it_names_the_mistake_and_where_it_begins(name):
    known = get_mistake(name)
    entry = naming(known)
    assert entry["named"][0] == entry["named_by_logits"][0] == name
    assert entry["first"] == known.first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights-in-int8", "log-sum-exp", "split-keys-averaged"])
def test_what_is_quantised_or_loses_digits_is_named_by_its_intermediates(name):
    assert naming(get_mistake(name))["named"] == [name]


def test_of_two_implementations_it_names_the_one_that_is_wrong():
    difference = compare("numpy", "mistake:query-key-swapped")
    assert [(e.operand, e.mistake.name) for e in difference.explanations if e.matches] == [
        ("mistake:query-key-swapped", "query-key-swapped")
    ]


def test_a_mistake_that_is_in_no_catalogue_is_not_explained():
    values = dict(truth(CASE).values)
    values["logits"] = values["logits"] + np.random.default_rng(0).standard_normal(values["logits"].shape)
    difference = diff(CASE, Operand("odd", values, tier_of("float32")), operand("oracle", "float32", CASE))
    assert difference.first is not None
    assert difference.first.name == "logits"
    assert not any(e.matches for e in difference.explanations)
    assert "No known mistake explains it." in report.sentences(difference)


def test_below_the_noise_of_single_numbers_a_mistake_is_named_by_its_direction():
    case = Case(SMALL, batch=4, time=16)
    whole = operand("mistake:gelu-constant-0.79788", "float32", case)
    difference = diff(
        case, Operand("mine", {"logits": whole.values["logits"]}, whole.tier), operand("oracle", "float32", case)
    )
    assert not difference.differ
    assert [(name, amplitude.name) for name, amplitude in difference.below_noise] == [("mine", "gelu-constant-0.79788")]
    assert "amplitude 1.0" in report.sentences(difference)[1]
    assert compare("numpy", case=case).below_noise == []


def test_what_is_not_a_number_is_infinitely_far():
    values = {name: value.copy() for name, value in truth(CASE).values.items()}
    values["final_norm"][1, -1, 0] = np.nan
    difference = diff(CASE, Operand("nan", values, tier_of("float32")), operand("oracle", "float32", CASE), mistakes=())
    assert difference.first is not None
    assert (difference.first.name, difference.first.z, difference.first.where) == ("final_norm", np.inf, (1, 9))
    padded = {name: value.copy() for name, value in truth(CASE).values.items()}
    padded["logits"][~CASE.is_real] = np.nan
    assert not diff(
        CASE, Operand("pad", padded, tier_of("float32")), operand("oracle", "float32", CASE), mistakes=()
    ).differ


def test_operands_without_a_common_intermediate_or_of_another_shape_are_refused():
    tier = tier_of("float32")
    with pytest.raises(InvalidInput, match="both have"):
        diff(CASE, Operand("a", {"final_norm": np.zeros(1)}, tier), Operand("b", {"logits": np.zeros(1)}, tier))
    with pytest.raises(InvalidInput, match="of shape"):
        diff(CASE, Operand("a", {"logits": np.zeros((1, 1, 1))}, tier), operand("oracle", "float32", CASE))


def test_unknown_operands_are_refused():
    for name, error in {
        "mistake:no-such": InvalidInput,
        "no_such_backend": InvalidInput,
        "no.such:Adapter": Unsupported,
    }.items():
        with pytest.raises(error):
            operand(name, "float32", CASE)
    with pytest.raises(Unsupported, match="not in float8"):
        operand("numpy@float8", "float32", CASE)


# --- what is printed ---------------------------------------------------------------------------------------------


def test_a_bar_is_logarithmic_and_shows_the_limit():
    assert report.bar(0.1, 1e6).count("#") == 0
    assert report.bar(np.inf, 1e6).count("#") == report.BAR
    assert "|" in report.bar(1.0, 1e6)
    lengths = [report.bar(10.0**k, 1e6).count("#") for k in range(7)]
    assert lengths == sorted(set(lengths))


def test_of_many_intermediates_blocks_and_the_first_difference_are_shown():
    comparisons = [
        Comparison(f"layers.{i}.{name}", 0.5, 0.0, (0, 0))
        for i in range(30)
        for name in ("mlp.up", "mlp.output", "mlp_block")
    ]
    comparisons[40] = replace(comparisons[40], z=9.0)
    operands = (operand("oracle", "float32", CASE), operand("oracle", "float32", CASE))
    names = [row.name for row in report.shown(Difference(CASE, operands, comparisons))]
    assert comparisons[40].name in names
    assert "layers.0.mlp_block" in names
    assert "layers.0.mlp.up" not in names


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_holds_every_intermediate():
    difference = compare("mistake:gelu-erf")
    text = html_page.page(difference)
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", text)
    for name in truth(CASE).values:
        assert f"<code>{name}</code>" in text
    assert "computes the exact GELU with erf" in text
    assert text.count("<svg") == text.count("</svg>") == 2
    assert "nan" not in text.replace("nan-from-padding", "").lower()


def test_the_page_escapes_names():
    difference = compare("numpy")
    operands = (Operand("<script>", difference.operands[0].values, difference.operands[0].tier), difference.operands[1])
    assert "<script>" not in html_page.page(Difference(CASE, operands, difference.comparisons))


# --- the command -------------------------------------------------------------------------------------------------


def test_the_exit_code_says_whether_they_differ(capsys, tmp_path):
    page = tmp_path / "difference.html"
    assert app.run(["diff", "numpy", "--time", "6"]) == 0
    assert "agree" in capsys.readouterr().out
    assert app.run(["diff", "mistake:qkv-in-blocks", "oracle", "--time", "6", "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert "splits QKV in three blocks instead of per head" in out
    assert "layers.0.attention.query" in out
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_json_is_one_object(capsys):
    assert app.run(["diff", "mistake:relu", "--time", "6", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["first"] == "layers.0.mlp.gelu"
    assert result["explanations"][0]["mistake"] == "relu"
    assert result["explanations"][0]["clauses"] == ["MLP-2"]


@pytest.mark.slow
def test_a_run_over_a_cache_is_compared_by_its_logits(capsys):
    assert app.run(["diff", "mistake:cache-slot-late", "--time", "9", "--cuts", "4,6", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["explanations"][0]["mistake"] == "cache-slot-late"


def test_trace_files_are_compared_by_what_they_hold(capsys, tmp_path):
    files = [str(tmp_path / f"{dtype}.safetensors") for dtype in ("float32", "bfloat16")]
    for file, dtype in zip(files, ("float32", "bfloat16"), strict=True):
        assert app.run(["trace", "Everyone", "-o", file, "--dtype", dtype, "--names", "*block"]) == 0
    capsys.readouterr()
    assert app.run(["diff", *files, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["intermediates"]) > 2


@pytest.mark.parametrize(
    "arguments",
    [["numpy", "--mask", "diagonal"], ["numpy", "--cuts", "9,3"], ["numpy", "--cuts", "x"], ["mistake:none"]],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, capsys):
    assert app.run(["diff", *arguments]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi-in-bfloat16", "positions-wrap", "slopes-of-rank"])
def test_a_long_input_is_explained_too(name):
    known: Mistake = get_mistake(name)
    assert naming(known)["named"][0] == name
    assert example(known).time >= 12


# --- cases of a command line -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(cases() | adapted_cases())
def test_the_expression_that_a_failure_prints_is_the_case(case):
    assert case_of(code(case)) == case


def test_a_fixed_case_has_its_name():
    assert case_of("sharp attention").qk_gain == 60.0
    with pytest.raises(InvalidInput, match="did you mean sharp attention"):
        case_of("sharp atention")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Case(config=open('x'))", "one of Case, BloomConfig, Lora"),
        ("__import__('os').system('true')", "as a failure prints it"),
        ("Case(config=BloomConfig(vocabulary_size=7), size=3)", "argument of Case|as a failure"),
        ("Lora()", r"an expression Case\(...\)"),
        ("Case(", "as a failure prints it"),
        ("Case(arrays=...)", "--vector"),
        ("Case(seed=[i for i in (1, 2)])", "as a failure prints it"),
    ],
)
def test_nothing_else_is_read_and_nothing_executed(text, message):
    with pytest.raises(InvalidInput, match=message):
        case_of(text)


@pytest.mark.slow
def test_a_case_and_a_vector_from_the_command_line(capsys):
    text = "Case(config=BloomConfig(vocabulary_size=7, num_layers=1, num_heads=3, hidden_dim=6, intermediate_dim=8), time=4, cuts=(2,))"
    assert app.run(["diff", "mistake:cache-slot-late", "--case", text, "--capacity", "6"]) == 1
    assert "first at layers.0.attention.scores" in " ".join(capsys.readouterr().out.split())
    assert app.run(["diff", "mistake:cache-slot-late", "--vector", "kvc-prompt-and-step", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first"] == "layers.0.attention.scores"
    assert app.run(["diff", "numpy", "--vector", "kvc-prompt-and-stepp"]) == 2
    assert "did you mean kvc-prompt-and-step" in capsys.readouterr().err
    assert app.run(["diff", "numpy", "--vector", "kvc-prompt-and-step", "--case", "plain"]) == 2
    assert "--case and --vector" in capsys.readouterr().err
    assert app.run(["diff", "numpy", "--case", "plain", "--capacity", "3"]) == 2


def test_an_adapter_from_the_command_line(capsys):
    few = ["--time", "5", "--layers", "1", "--lora", "2", "--lora-targets", "query_key_value"]
    assert app.run(["diff", "mistake:lora-scale-forgotten", *few]) == 1
    assert "first at layers.0.attention.query" in " ".join(capsys.readouterr().out.split())


@pytest.mark.clause("GRD-3")
def test_gradients_are_compared_in_the_order_of_the_backward_pass(capsys):
    few = ["--gradients", "--time", "5", "--layers", "1", "--rows", "1"]
    assert app.run(["diff", "numpy", *few, "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["intermediates"]]
    assert names[0] == "loss"
    assert names.index("transformer.ln_f.bias") < names.index("transformer.h.0.mlp.dense_4h_to_h.weight")
    assert names[-1] == "transformer.word_embeddings.weight"
    case = Case(SMALL, batch=1, time=4)
    right = backward.operand("oracle", "float32", case)
    values = dict(right.values)
    values["transformer.ln_f.weight"] = values["transformer.ln_f.weight"] * 1.5
    difference = backward.difference(case, Operand("mine", values, tier_of("float32")), right)
    assert difference.first is not None
    assert difference.first.name == "transformer.ln_f.weight"
    assert report.sentences(difference)[0].endswith("relative error 0.5.")
    assert report.to_dict(difference)["intermediates"][0]["worst"] is None
    del values["transformer.ln_f.weight"]
    with pytest.raises(InvalidInput, match="GRD-4"):
        backward.difference(case, Operand("mine", values, tier_of("float32")), right)


@pytest.mark.parametrize("every", [False, True])
def test_a_long_table_says_what_is_left_out(every):
    rows = [Comparison(f"layers.{i}.mlp.up", 0.5, 0.0, (0, 0)) for i in range(50)]
    oracle = operand("oracle", "float32", CASE)
    console = Console(file=StringIO(), width=120)
    report.show(Difference(CASE, (oracle, oracle), [*rows, replace(rows[0], name="logits")]), console, every)
    text = console.file.getvalue()
    assert ("50 of 51 rows are left out; --all shows them." in text) == (not every)
    assert ("layers.49.mlp.up" in text) == every


# --- names of operands -----------------------------------------------------------------------------------------------


def test_a_command_without_its_prefix_is_recognised(capsys):
    assert app.run(["diff", "node bloom.js"]) == 2
    assert "a program is named 'program:node bloom.js'" in capsys.readouterr().err


def test_a_registered_backend_before_a_colon_is_a_backend():
    assert implementation("cupy:1").name == "cupy:1"
    with pytest.raises(Unsupported, match="No module named"):
        implementation("no_such:1")


def test_a_program_that_fails_is_one_sentence_and_exit_code_1(capsys):
    assert app.run(["diff", f"program:{shlex.quote(sys.executable)} -c 'raise SystemExit(3)'"]) == 1
    error = capsys.readouterr().err
    assert "it died (status 3)" in error
    assert "Traceback" not in error


def test_the_name_of_an_implementation_finds_it_again():
    for name in ("numpy", "transformers", "mistake:gelu-erf"):
        assert name_of(implementation(name)) == name
