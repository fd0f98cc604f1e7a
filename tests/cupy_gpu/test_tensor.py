"""The tensor-core products of 5 to 64 rows against the reference's operations in float64."""

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_problems import Product, TensorProjection

DTYPES = ("float16", "bfloat16")
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("dtype", DTYPES)
class TestTensor:
    @pytest.mark.clause("MLP-1", "MLP-2", "MLP-3", "ATT-10", "MLP-4", "MOD-3", "MOD-5", "NUM-2")
    @settings(max_examples=20)
    @given(
        seed=seeds,
        kind=st.sampled_from(("gelu", "residual", "head")),
        rows=st.one_of(st.integers(5, 64), st.sampled_from((8, 9, 16, 17, 32, 33))),
        width=st.one_of(st.integers(1, 9).map(lambda n: 8 * n), st.sampled_from((256, 264, 1000))),
        outputs=st.one_of(st.integers(1, 70), st.sampled_from((127, 128, 129))),
        sms=st.sampled_from((1, 4, 132)),
    )
    def test_product(self, device: EmulatedDevice, dtype: str, seed: int, kind: str, rows: int, width: int, outputs: int,
                     sms: int) -> None:  # fmt: skip
        check(Product(dtype, seed, kind, rows, width, outputs, sms), device)

    @pytest.mark.clause("ATT-2", "KVC-1", "NUM-2")
    @settings(max_examples=8)
    @given(
        seed=seeds,
        shape=st.sampled_from(((5, 1), (17, 1), (32, 1), (33, 1), (64, 1), (5, 7), (1, 40))),
        heads=st.integers(1, 4),
        head_width=st.sampled_from((8, 16, 80)),
        start=st.integers(0, 6),
        sms=st.sampled_from((1, 4, 132)),
    )
    def test_qkv(self, device: EmulatedDevice, dtype: str, seed: int, shape: tuple[int, int], heads: int, head_width: int,
                 start: int, sms: int) -> None:  # fmt: skip
        check(TensorProjection(dtype, seed, *shape, heads, head_width, start, sms=sms), device)

    def test_tiles_of_each_number(self, device: EmulatedDevice, dtype: str) -> None:
        """One or two a warp, and warps that share an output or do not."""
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
    assert len({problem.run(emulator(seed=seed)).tobytes() for seed in (0, 1, 2, 3)}) == 1
