"""The checks of arguments that config, settings, options and files share."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bloomref.errors import InvalidInput
from bloomref.validation import check_bool, check_integer, check_known, check_real, did_you_mean, mismatch


@pytest.mark.parametrize("value", [3, 10**400, np.int64(3), np.uint8(3)])
def test_integers(value: Any) -> None:
    check_integer("n", value, 3)


@pytest.mark.parametrize("value", [2, -(10**400), True, 3.0, np.float64(3), np.bool_(True), "3", None])
def test_no_integer_of_the_domain(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^n: expected an integer >= 3, got "):
        check_integer("n", value, 3)


@pytest.mark.parametrize("value", [0, 0.5, np.float16(0.5), np.int8(0), Fraction(1, 3)])
def test_real_numbers(value: Any) -> None:
    check_real("p", value, "a number in [0, 1)", lambda p: 0 <= p < 1)


@pytest.mark.parametrize(
    "value", [1, -0.5, True, "0.5", None, 0j, float("nan"), float("inf"), 10**400, np.float16("inf")]
)
def test_no_real_number_of_the_domain(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^p: expected a number in \[0, 1\), got "):
        check_real("p", value, "a number in [0, 1)", lambda p: 0 <= p < 1)


def test_a_bool_is_true_or_false() -> None:
    check_bool("b", False)
    with pytest.raises(InvalidInput, match=r"^b: expected True or False, got 1$"):
        check_bool("b", 1)


@pytest.mark.parametrize(
    ("name", "hint"), [("max_lengt", "did you mean max_length?"), ("x", "known: max_length, seed")]
)
def test_an_unknown_name_is_refused_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_known(["seed", name], ["max_length", "seed"], "an option")
    assert str(caught.value) == f"{name}: expected an option, got an unknown name; {hint}"


def test_a_suggestion_names_what_is_close() -> None:
    assert did_you_mean("bloom", ["bloomz", "bloom_3b", "gpt2"], 2) == "did you mean bloomz or bloom_3b?"
    assert did_you_mean("bloom", ["bloom_3b", "bloomz", "gpt2"]) == "did you mean bloomz?"
    assert did_you_mean("x", ["bloomz"]) == ""


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ("abcde", ""),
        ("abcdx", "missing e; unknown x"),
        ("abcdexyz", "unknown x, y, z"),
        ("a", "missing b, c, d and 1 more"),
    ],
)
def test_the_difference_of_two_sets_of_names(actual: str, message: str) -> None:
    assert mismatch("abcde", actual) == message
