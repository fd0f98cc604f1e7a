"""The gemv kernels of decoding against the reference in float64, for 1 to 64 rows."""

from typing import Any

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_draws import SHORT_DTYPES, check_bits_in_any_order, output_counts, seeds, sm_counts
from matvec_problems import Down, Head, Up
from problem import Problem
from row_problems import Projection

SHAPES = {
    "seed": seeds,
    "rows": st.one_of(st.sampled_from((1, 2)), st.integers(1, 16), st.integers(17, 64)),
    "width": st.one_of(st.integers(1, 80), st.sampled_from((255, 256, 264, 1000, 2048))),
    "outputs": output_counts,
    "sms": sm_counts,
}


@pytest.mark.parametrize("dtype", SHORT_DTYPES)
class TestMatvec:
    @pytest.mark.clause("ATT-1", "ATT-2", "KVC-1", "NUM-2")
    @settings(max_examples=12)
    @given(
        seed=seeds,
        shape=st.sampled_from(((1, 1), (2, 1), (3, 1), (5, 1), (16, 1), (17, 1), (49, 1), (2, 3), (1, 9), (5, 7))),
        heads=st.integers(1, 5),
        head_width=st.sampled_from((1, 7, 16, 80)),
        start=st.integers(0, 6),
        sms=sm_counts,
    )
    def test_the_projection_is_within_the_budget(
        self, device: EmulatedDevice, dtype: str, shape: tuple[int, int], **call: Any
    ) -> None:
        batch, time = shape
        check(Projection(dtype, batch=batch, time=time, matvec=True, **call), device)

    @pytest.mark.clause("MLP-1", "MLP-2", "MLP-3")
    @settings(max_examples=12)
    @given(**SHAPES)
    def test_the_up_projection_is_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Up(dtype, **shape), device)

    @pytest.mark.clause("ATT-10", "MLP-4", "MOD-3", "NUM-2")
    @settings(max_examples=12)
    @given(post_norm=st.booleans(), **SHAPES)
    def test_the_down_projection_is_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Down(dtype, **shape), device)

    @pytest.mark.clause("MOD-4", "MOD-5", "NUM-3")
    @settings(max_examples=12)
    @given(final_norm=st.booleans(), **SHAPES)
    def test_the_lm_head_is_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Head(dtype, **shape), device)


@pytest.mark.parametrize(
    "problem",
    [Projection("bfloat16", 1, 3, 1, 3, 80, 2, True, 132), Up("float16", 1, 5, 1000, 70), Down("float32", 1, 2, 1000, 70), Head("bfloat16", 1, 16, 264, 129), Head("float32", 1, 35, 264, 129)],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(
    emulator: type[EmulatedDevice], problem: Problem
) -> None:
    check_bits_in_any_order(problem, emulator)
