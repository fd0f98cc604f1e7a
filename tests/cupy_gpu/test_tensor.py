"""The tensor-core kernels of 5 to 64 rows against the reference in float64."""

from typing import Any

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_draws import HALVES, check_bits_in_any_order, output_counts, seeds, sm_counts
from tensor_problems import Product, TensorProjection


@pytest.mark.parametrize("dtype", HALVES)
class TestTensor:
    @pytest.mark.clause("MLP-1", "MLP-2", "MLP-3", "ATT-10", "MLP-4", "MOD-3", "MOD-5", "NUM-2")
    @settings(max_examples=20)
    @given(
        seed=seeds,
        kind=st.sampled_from(("gelu", "residual", "head")),
        rows=st.one_of(st.integers(5, 64), st.sampled_from((8, 9, 16, 17, 32, 33))),
        width=st.one_of(st.integers(1, 9).map(lambda n: 8 * n), st.sampled_from((256, 264, 1000))),
        outputs=output_counts,
        sms=sm_counts,
    )
    def test_the_products_are_within_the_budget(self, device: EmulatedDevice, dtype: str, **shape: Any) -> None:
        check(Product(dtype, **shape), device)

    @pytest.mark.clause("ATT-2", "KVC-1", "NUM-2")
    @settings(max_examples=8)
    @given(
        seed=seeds,
        shape=st.sampled_from(((5, 1), (17, 1), (32, 1), (33, 1), (64, 1), (5, 7), (1, 40))),
        heads=st.integers(1, 4),
        head_width=st.sampled_from((8, 16, 80)),
        start=st.integers(0, 6),
        sms=sm_counts,
    )
    def test_the_projection_is_within_the_budget(
        self, device: EmulatedDevice, dtype: str, shape: tuple[int, int], **call: Any
    ) -> None:
        batch, time = shape
        check(TensorProjection(dtype, batch=batch, time=time, **call), device)

    def test_a_warp_has_one_or_two_tiles_and_may_share_its_outputs(self, device: EmulatedDevice, dtype: str) -> None:
        for sms, outputs in ((1, 31), (1, 32), (1, 300), (4, 127), (4, 128), (132, 64)):
            check(Product(dtype, 3, "gelu", 40, 264, outputs, sms), device)


@pytest.mark.parametrize(
    "problem",
    [TensorProjection("bfloat16", 1, 33, 1, 3, 16, 2), Product("float16", 1, "residual", 40, 1000, 70)],
    ids=lambda p: type(p).__name__,
)
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(
    emulator: type[EmulatedDevice], problem: Product | TensorProjection
) -> None:
    check_bits_in_any_order(problem, emulator)
