"""The row-wise kernels around cuBLAS against the reference in float64."""

from typing import Any

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_draws import DTYPES, seeds
from row_problems import Activation, Norm, Projection, Residual

SHAPES = {
    "seed": seeds,
    "rows": st.integers(1, 5),
    "width": st.one_of(st.integers(1, 80), st.sampled_from((255, 256, 257, 1024, 2056))),
}


@pytest.mark.parametrize("dtype", DTYPES)
class TestRows:
    @pytest.mark.clause("EMB-3", "MOD-4", "NUM-2")
    @settings(max_examples=15)
    @given(embedding=st.booleans(), **SHAPES)
    def test_the_norms_are_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Norm(dtype, **shape), device)

    @pytest.mark.clause("MLP-2")
    @settings(max_examples=10)
    @given(**SHAPES)
    def test_gelu_is_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Activation(dtype, **shape), device)

    @pytest.mark.clause("MOD-3", "NUM-2")
    @settings(max_examples=15)
    @given(post_norm=st.booleans(), **SHAPES)
    def test_the_residuals_are_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Residual(dtype, **shape), device)

    @pytest.mark.clause("ATT-2", "KVC-1", "NUM-2")
    @settings(max_examples=15)
    @given(
        seed=seeds,
        batch=st.integers(1, 3),
        time=st.integers(1, 5),
        heads=st.integers(1, 5),
        head_width=st.sampled_from((1, 7, 16, 80)),
        start=st.integers(0, 6),
    )
    def test_the_projection_is_within_the_budget(self, device: EmulatedDevice, dtype: str, **call: Any) -> None:
        check(Projection(dtype, **call), device)


def test_an_empty_batch_launches_nothing(device: EmulatedDevice) -> None:
    check(Norm("float32", rows=0), device)
    check(Projection("float32", batch=0), device)
