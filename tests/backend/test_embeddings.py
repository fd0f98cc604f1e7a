"""Embeddings in place of token ids, on every backend."""

import numpy as np
import pytest

from bloomref import BloomBackbone

IDS = np.array([[3, 4, 5], [0, 6, 7]])
MASK = np.array([[1, 1, 1], [0, 1, 1]])


@pytest.mark.clause("EMB-7")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_float16"])
def test_embeddings_of_ids_give_what_the_ids_give(dtype: str, backend: str) -> None:
    """Wider vectors are rounded first."""
    model = BloomBackbone(20, 2, 3, 12, 24, dtype=dtype, backend=backend, seed=1)
    vectors = model.token_embedding(IDS).astype(np.float64) * (1 + 1e-7)
    got = model({"inputs_embeds": vectors, "padding_mask": MASK})
    expected = model({"token_ids": IDS, "padding_mask": MASK})
    assert got.dtype == expected.dtype == model.policy.compute_dtype
    real = MASK.astype(bool)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        got[real].astype(np.float64), expected[real].astype(np.float64), rtol=0, atol=tolerance * 4
    )
