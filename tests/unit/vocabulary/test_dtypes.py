"""Dtype policies: names, spellings, and refusals."""

import ml_dtypes
import numpy as np
import pytest

from bloomref.dtypes import POLICIES, accumulation_dtype, cast, dtype_policy, floating_dtype
from bloomref.errors import InvalidInput

TABLE = {
    "float64": ("float64", "float64", "float64"),
    "float32": ("float32", "float32", "float32"),
    "float16": ("float16", "float16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "float32"),
    "mixed_float16": ("float32", "float16", "float32"),
    "mixed_bfloat16": ("float32", "bfloat16", "float32"),
}


@pytest.mark.clause("NUM-1", "NUM-2")
@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_policies(name):
    policy = dtype_policy(name)
    accumulation = accumulation_dtype(policy.compute_dtype)
    assert (policy.variable_dtype.name, policy.compute_dtype.name, accumulation.name) == TABLE[name]
    assert policy.name == name


def test_there_are_no_other_policies():
    assert set(POLICIES) == set(TABLE)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        (None, "float32"),
        (np.float16, "float16"),
        (np.dtype(np.float64), "float64"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        ("mixed_float16", "mixed_float16"),
        (POLICIES["mixed_bfloat16"], "mixed_bfloat16"),
    ],
)
def test_every_spelling_of_a_dtype(spelling, name):
    assert dtype_policy(spelling).name == name


def test_a_policy_of_another_library_is_known_by_its_name():
    class KerasPolicy:
        name = "mixed_float16"

    assert dtype_policy(KerasPolicy()).name == "mixed_float16"


BAD = ["float8", "", "Float32", np.int32, int, bool, np.complex64, 7, object(), [], "mixed_float32", ">f4x"]


@pytest.mark.clause("NUM-4")
@pytest.mark.parametrize("dtype", BAD, ids=range(len(BAD)))
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InvalidInput, match=r"^dtype: expected one of float64, .*, got "):
        dtype_policy(dtype)


def test_storage_dtypes():
    assert floating_dtype("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    with pytest.raises(InvalidInput, match="dtype: expected one of"):
        floating_dtype("mixed_float16")


@pytest.mark.clause("NUM-1")
def test_float64_becomes_bfloat16_in_one_rounding():
    """1 + 2^-8 is a tie between two bfloat16 numbers; a little more is not, but float32 rounds it to the tie."""
    tie = 1 + 2.0**-8
    values = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40, 3.0, 0.0, -0.0])
    expected = [1.0, 1 + 2.0**-7, 1.0, -1 - 2.0**-7, 3.0, 0.0, -0.0]
    rounded = cast(values, floating_dtype("bfloat16")).astype(np.float64)
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(expected))


@pytest.mark.clause("NUM-1")
def test_a_cast_to_its_own_dtype_copies_nothing():
    for policy in POLICIES.values():
        array = np.ones(3, policy.compute_dtype)
        assert cast(array, policy.compute_dtype) is array
