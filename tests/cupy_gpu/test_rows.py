"""The kernels around matrix products, each against the reference's operations in float64."""

import pytest
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import Activation, Norm, Projection, Residual

from accel.cupy_gpu.sources import CPP_TYPE

DTYPES = tuple(CPP_TYPE)
seeds = st.integers(0, 2**32 - 1)
rows = st.integers(1, 5)
widths = st.one_of(st.integers(1, 80), st.sampled_from((255, 256, 257, 1024, 2056)))


@pytest.mark.parametrize("dtype", DTYPES)
class TestRows:
    @pytest.mark.clause("EMB-3", "MOD-4", "NUM-2")
    @settings(max_examples=15)
    @given(seed=seeds, rows=rows, width=widths, embedding=st.booleans())
    def test_norm(self, device: EmulatedDevice, dtype: str, seed: int, rows: int, width: int, embedding: bool) -> None:
        check(Norm(dtype, seed, rows, width, embedding), device)

    @pytest.mark.clause("MLP-2")
    @settings(max_examples=10)
    @given(seed=seeds, rows=rows, width=widths)
    def test_activation(self, device: EmulatedDevice, dtype: str, seed: int, rows: int, width: int) -> None:
        check(Activation(dtype, seed, rows, width), device)

    @pytest.mark.clause("MOD-3", "NUM-2")
    @settings(max_examples=15)
    @given(seed=seeds, rows=rows, width=widths, post_norm=st.booleans())
    def test_residual(
        self, device: EmulatedDevice, dtype: str, seed: int, rows: int, width: int, post_norm: bool
    ) -> None:
        check(Residual(dtype, seed, rows, width, post_norm), device)

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
    def test_projection(
        self,
        device: EmulatedDevice,
        dtype: str,
        seed: int,
        batch: int,
        time: int,
        heads: int,
        head_width: int,
        start: int,
    ) -> None:
        check(Projection(dtype, seed, batch, time, heads, head_width, start), device)


def test_nothing_to_do(device: EmulatedDevice) -> None:
    check(Norm("float32", rows=0), device)
    check(Projection("float32", batch=0), device)
