"""The matrix-vector kernels of decoding against the reference's operations in float64, for 1 to 64 rows."""

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from matvec_problems import Down, Head, Up
from problem import Problem
from row_problems import Projection

DTYPES = ("float32", "float16", "bfloat16")
rows = st.one_of(st.sampled_from((1, 2)), st.integers(1, 16), st.integers(17, 64))
widths = st.one_of(st.integers(1, 80), st.sampled_from((255, 256, 264, 1000, 2048)))
outputs = st.one_of(st.integers(1, 70), st.sampled_from((127, 128, 129)))
sms = st.sampled_from((1, 4, 132))
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("dtype", DTYPES)
class TestMatvec:
    @pytest.mark.clause("ATT-1", "ATT-2", "KVC-1", "NUM-2")
    @settings(max_examples=12)
    @given(
        seed=seeds,
        shape=st.sampled_from(((1, 1), (2, 1), (3, 1), (5, 1), (16, 1), (17, 1), (49, 1), (2, 3), (1, 9), (5, 7))),
        heads=st.integers(1, 5),
        head_width=st.sampled_from((1, 7, 16, 80)),
        start=st.integers(0, 6),
        sms=sms,
    )
    def test_qkv(
        self,
        device: EmulatedDevice,
        dtype: str,
        seed: int,
        shape: tuple[int, int],
        heads: int,
        head_width: int,
        start: int,
        sms: int,
    ) -> None:
        check(Projection(dtype, seed, *shape, heads, head_width, start, True, sms), device)

    @pytest.mark.clause("MLP-1", "MLP-2", "MLP-3")
    @settings(max_examples=12)
    @given(seed=seeds, rows=rows, width=widths, outputs=outputs, sms=sms)
    def test_up(
        self, device: EmulatedDevice, dtype: str, seed: int, rows: int, width: int, outputs: int, sms: int
    ) -> None:
        check(Up(dtype, seed, rows, width, outputs, sms), device)

    @pytest.mark.clause("ATT-10", "MLP-4", "MOD-3", "NUM-2")
    @settings(max_examples=12)
    @given(seed=seeds, rows=rows, width=widths, outputs=outputs, sms=sms, post_norm=st.booleans())
    def test_down(
        self,
        device: EmulatedDevice,
        dtype: str,
        seed: int,
        rows: int,
        width: int,
        outputs: int,
        sms: int,
        post_norm: bool,
    ) -> None:
        check(Down(dtype, seed, rows, width, outputs, sms, post_norm), device)

    @pytest.mark.clause("MOD-4", "MOD-5", "NUM-3")
    @settings(max_examples=12)
    @given(seed=seeds, rows=rows, width=widths, outputs=outputs, sms=sms, final_norm=st.booleans())
    def test_head(
        self,
        device: EmulatedDevice,
        dtype: str,
        seed: int,
        rows: int,
        width: int,
        outputs: int,
        sms: int,
        final_norm: bool,
    ) -> None:
        check(Head(dtype, seed, rows, width, outputs, sms, final_norm), device)


@pytest.mark.parametrize(
    "problem",
    [Projection("bfloat16", 1, 3, 1, 3, 80, 2, True, 132), Up("float16", 1, 5, 1000, 70), Down("float32", 1, 2, 1000, 70), Head("bfloat16", 1, 16, 264, 129), Head("float32", 1, 35, 264, 129)],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(
    emulator: type[EmulatedDevice], problem: Problem
) -> None:
    results = [problem.run(emulator(seed=seed)).tobytes() for seed in (0, 1, 2, 3)]
    assert len(set(results)) == 1
