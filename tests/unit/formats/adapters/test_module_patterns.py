"""Regular expressions for names of modules: Python's answers, in a bounded number of steps."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref import InvalidInput
from bloomref.formats.adapters.module_patterns import Patterns

ATOMS = ("a", "b", "A", r"\.", ".", "[ab]", "[^a]", r"[\d.]", r"\w", "^", "$", r"\b", r"\B", "(?<=a)", "(?<!b)", "(?!)")
REPEATS = ("*", "+", "?", "*?", "{2}", "{1,2}", "{0,3}?", "{0}")


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(REPEATS)),
        st.builds("(?{}{}){}".format, st.sampled_from(("=", "!", "i:")), inner, inner),
    )


EXPRESSIONS = st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6)


@pytest.mark.clause("LRA-12", "LRA-25")
@settings(max_examples=40)
@given(EXPRESSIONS, st.text("abA.1", min_size=1, max_size=6))
def test_answers_are_those_of_python(expression: str, name: str):
    patterns = Patterns("x")
    assert patterns.fullmatch(expression, name) == (re.fullmatch(expression, name) is not None)
    assert patterns.match_end(expression, name) == (re.match(rf"(.*\.)?({expression})$", name) is not None)


@pytest.mark.clause("LRA-25")
@pytest.mark.parametrize(
    "expression",
    [
        "(.|.)" * 40,
        "(|)" * 60,
        "(.*)*x",
        "(((a+)+)+)+x",
        "(?:(?=.*x)|.)*" * 5 + "y",
        "(a?){50}a{50}x",
        "(.{1,30}){1,30}x",
    ],
)
def test_no_expression_takes_exponential_time(expression: str):
    patterns = Patterns("x")
    assert not any(patterns.match_end(expression, "a" * n) for n in (30, 31))
    assert patterns.left > 1_000_000


@pytest.mark.parametrize("expression", ["((", "*a", "(?P<x>a)(?P=x)", r"(a)\1", "(a)?(?(1)b|c)", "(?>a+)b", "a*+b"])
def test_what_is_no_plain_expression_is_refused(expression: str):
    with pytest.raises(InvalidInput, match=r"^target_modules: expected a (plain )?regular expression"):
        Patterns("target_modules").fullmatch(expression, "aab")


@pytest.mark.clause("LRA-25")
def test_calls_share_a_budget():
    patterns = Patterns("alpha_pattern", steps=100)
    assert patterns.first({"b": 1, "a+": 2}, "aa", 3) == 2
    with pytest.raises(InvalidInput, match="few steps"):
        patterns.fullmatch("(.|.)*" * 10, "a" * 30)


def test_deep_groups_are_refused():
    depth = 400
    with pytest.raises(InvalidInput, match="regular expression"):
        Patterns("x").fullmatch("(?:" * depth + "a" + ")?" * depth, "a")
