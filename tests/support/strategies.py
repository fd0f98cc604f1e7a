"""The conformance kit's cases and strategies, with the sizes of unit tests: short, and with weights of all 24 bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance import cases as kit_cases
from bloomref.conformance import strategies as kit
from bloomref.conformance.cases import MASKS, draw_params, mask
from bloomref.conformance.strategies import HEAD_DIMS, HEADS, configs

__all__ = [
    "FLOAT64",
    "HEADS",
    "HEAD_DIMS",
    "MASKS",
    "BloomConfig",
    "Float32Case",
    "cases",
    "configs",
    "draw_params",
    "mask",
]

FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Float32Case(kit_cases.Case):
    """A case with float32 weights, which tests round to the tested dtype."""

    weights: str = "float32"


def cases(
    max_batch: int = 3, max_time: int = 9, max_layers: int = 2, kinds: Sequence[str] = MASKS
) -> st.SearchStrategy[kit_cases.Case]:
    """Models and batches, small and without extremes."""
    drawn = kit.cases(
        max_batch=max_batch, max_time=max_time, max_layers=max_layers, kinds=kinds, long=False, sharp=False
    )
    return drawn.map(lambda case: replace(case, weights="float32"))
