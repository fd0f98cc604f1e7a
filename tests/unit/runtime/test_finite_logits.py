"""Logits that are not finite are refused, in one message."""

import numpy as np
import pytest

from bloomref import BloomBackbone
from bloomref.errors import BadWeights
from bloomref.runtime.finite_logits import finite_logits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_logit_that_is_not_finite_is_found(value: float, place: tuple[int, int], dtype: str) -> None:
    engine = BloomBackbone(9, 1, 2, 8, 16).engine
    logits = np.zeros((3, 5), dtype)
    logits[place] = value
    with pytest.raises(BadWeights, match=f"logits: expected finite numbers, got {value}; .* in float32"):
        finite_logits(engine, lambda: logits)


def test_the_largest_finite_logits_are_accepted() -> None:
    """The sum of these logits overflows; the logits do not."""
    engine = BloomBackbone(9, 1, 2, 8, 16).engine
    logits = np.full((2, 5), np.finfo(np.float32).max)
    logits[:, 3] *= -1
    assert finite_logits(engine, lambda: logits) is logits
