"""The dictionary input of a model: accepted forms, the resulting arrays, and refusals."""

import ml_dtypes
import numpy as np
import pytest

from bloomref.errors import InvalidInput
from bloomref.runtime.inputs import token_batch

V = 200
IDS = [[1, 2, 3], [4, 5, 199]]
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.mark.clause("EMB-1")
@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_dtype_means_the_same(dtype):
    limit = min(V - 1, np.iinfo(dtype).max)
    batch = token_batch({"token_ids": np.array([[0, 1, limit]], dtype)}, V)
    assert batch.token_ids.tolist() == [[0, 1, limit]]
    assert batch.token_ids.dtype == np.int64


@pytest.mark.clause("EMB-2")
def test_both_ends_of_the_vocabulary_are_legal():
    assert token_batch({"token_ids": [[0, V - 1]]}, V).token_ids.tolist() == [[0, V - 1]]


@pytest.mark.clause("ATT-12")
@pytest.mark.parametrize("inputs", [{"token_ids": IDS}, {"token_ids": IDS, "padding_mask": None}])
def test_without_a_mask_every_position_is_real(inputs):
    assert token_batch(inputs, V).is_real.tolist() == [[True] * 3] * 2


@pytest.mark.clause("ATT-11")
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_mask_of_zeros_and_ones_of_any_number_type(dtype):
    mask = np.array([[1, 0, 1], [0, 0, 0]]).astype(dtype)
    batch = token_batch({"token_ids": IDS, "padding_mask": mask}, V)
    assert batch.is_real.dtype == np.bool_
    assert batch.is_real.tolist() == [[True, False, True], [False] * 3]


@pytest.mark.clause("EMB-6")
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_and_sequences(shape):
    batch = token_batch({"token_ids": np.zeros(shape, np.int32), "padding_mask": np.zeros(shape)}, V)
    assert batch.token_ids.shape == batch.is_real.shape == shape
    assert token_batch({"token_ids": [[], []]}, V).token_ids.shape == (2, 0)


def test_the_caller_keeps_his_arrays():
    ids, mask = np.array(IDS), np.ones((2, 3), bool)
    batch = token_batch({"token_ids": ids, "padding_mask": mask}, V)
    batch.token_ids[:], batch.is_real[:] = 0, False
    assert ids.tolist() == IDS
    assert mask.all()


BAD = {
    "no dictionary": (IDS, "inputs: expected a dictionary"),
    "None": (None, "inputs: expected a dictionary"),
    "no ids": ({"padding_mask": [[1]]}, "inputs: expected a key 'token_ids'"),
    "another key": ({"token_ids": IDS, "position_ids": IDS}, r"also \['position_ids'\]"),
    "both names": ({"token_ids": IDS, "input_ids": IDS}, "inputs: expected either token_ids or input_ids"),
    "one sequence": ({"token_ids": [1, 2]}, r"token_ids: expected shape .*got shape \(2,\); put a single"),
    "a single id": ({"token_ids": 5}, r"token_ids: expected shape"),
    "three axes": ({"token_ids": [IDS]}, r"token_ids: expected shape .*got shape \(1, 2, 3\)"),
    "ragged": ({"token_ids": [[1, 2], [3]]}, "token_ids: expected a rectangular array"),
    "None ids": ({"token_ids": None}, "token_ids: expected integers"),
    "text": ({"token_ids": [["a"]]}, "token_ids: expected integers, got dtype <U1"),
    "negative": ({"token_ids": [[-1]]}, r"token_ids: expected ids in \[0, 200\).*got -1"),
    "one too many": ({"token_ids": [[200]]}, r"token_ids: expected ids in \[0, 200\).*got 200"),
    "2 ** 32 + 5": ({"token_ids": [[2**32 + 5]]}, "got 4294967301"),
    "2 ** 63": ({"token_ids": np.array([[2**63]], np.uint64)}, "got 9223372036854775808"),
    "2 ** 70": ({"token_ids": [[2**70]]}, "token_ids: expected integers"),
    "floats": ({"token_ids": [[1.0, 2.0]]}, "token_ids: expected integers, got dtype float64"),
    "bools": ({"token_ids": [[True, False]]}, "token_ids: expected integers, got dtype bool"),
    "mask of another shape": (
        {"token_ids": IDS, "padding_mask": [[1, 1]]},
        "padding_mask: expected the shape",
    ),
    "mask that would broadcast": ({"token_ids": IDS, "padding_mask": [[1, 1, 1]]}, r"got shape \(1, 3\)"),
    "mask of twos": ({"token_ids": [[1]], "padding_mask": [[2]]}, "padding_mask: expected only 0 .* got 2"),
    "mask of halves": ({"token_ids": [[1]], "padding_mask": [[0.5]]}, "got 0.5"),
    "mask of minus one": ({"token_ids": [[1]], "padding_mask": [[-1]]}, "got -1"),
    "mask with NaN": ({"token_ids": [[1]], "padding_mask": [[np.nan]]}, "got nan"),
    "additive mask": ({"token_ids": [[1, 1]], "padding_mask": [[0.0, -np.inf]]}, "got -inf"),
    "mask of text": (
        {"token_ids": [[1]], "padding_mask": [["1"]]},
        "padding_mask: expected numbers or bools",
    ),
    "ragged mask": (
        {"token_ids": IDS, "padding_mask": [[1], [1, 1]]},
        "padding_mask: expected a rectangular",
    ),
}


@pytest.mark.clause("MOD-1", "EMB-2", "ATT-11")
@pytest.mark.parametrize(("inputs", "message"), BAD.values(), ids=BAD)
def test_bad_inputs_are_refused(inputs, message):
    with pytest.raises(InvalidInput, match=message):
        token_batch(inputs, V)
