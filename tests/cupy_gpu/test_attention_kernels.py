"""The attention kernels against the reference's operations in float64: every dtype, head width, start and kind of mask."""

from typing import Any

import numpy as np
import pytest
from attention_problem import Attention
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MASKS

from accel.cupy_gpu import launches

DTYPES = ("float64", "float32", "float16", "bfloat16")
HALVES = DTYPES[2:]
HEAD_WIDTHS = (64, 80, 96, 128, 33)
TILED_WIDTHS = (*HEAD_WIDTHS, 1, 16, 112)
ROW_WIDTHS = (*HEAD_WIDTHS, 1, 160, 520)  # the last is more than one load a lane in every dtype
seeds = st.integers(0, 2**32 - 1)
PROMPTS = {
    "seed": seeds, "heads": st.sampled_from((1, 3)), "batch": st.integers(1, 2),
    "start": st.sampled_from((0, 1, 63, 64, 70)), "padding": st.sampled_from(MASKS),
}  # fmt: skip
"""Around the tiles of 64 queries and 64 keys."""


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", ROW_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
class TestRows:
    @settings(max_examples=10)
    @given(
        seed=seeds,
        heads=st.sampled_from((1, 2, 3, 9, 12)),
        batch=st.integers(1, 2),
        time=st.integers(1, 9),
        start=st.integers(0, 40),
        padding=st.sampled_from(MASKS),
    )
    def test_attention(
        self,
        device: EmulatedDevice,
        dtype: str,
        head_width: int,
        seed: int,
        heads: int,
        batch: int,
        time: int,
        start: int,
        padding: str,
    ) -> None:
        check(Attention(dtype, seed, "rows", heads, head_width, batch, time, start, padding), device)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("dtype", HALVES)
class TestFlash:
    @settings(max_examples=6)
    @given(time=st.sampled_from((1, 5, 63, 64, 65, 100, 130)), **PROMPTS)
    def test_attention(self, device: EmulatedDevice, dtype: str, head_width: int, **prompt: Any) -> None:
        check(Attention(dtype, kind="flash", head_width=head_width, **prompt), device)

    def test_before_sm_80_one_stage(self, emulator: type[EmulatedDevice], dtype: str, head_width: int) -> None:
        old = emulator(arch=75)
        assert launches.has_flash(dtype, head_width, 75) == (dtype == "float16")
        if dtype == "float16":
            check(Attention(dtype, 1, "flash", 2, head_width, 1, 70, 65, "holes"), old)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
class TestDecode:
    @settings(max_examples=10)
    @given(
        seed=seeds,
        heads=st.sampled_from((1, 2, 3, 9)),
        batch=st.integers(1, 3),
        start=st.one_of(st.integers(0, 20), st.integers(60, 300)),
        padding=st.sampled_from(MASKS),
        sms=st.sampled_from((1, 5, 16)),
        spare=st.sampled_from((0, 3, 200)),
    )
    def test_attention(
        self,
        device: EmulatedDevice,
        dtype: str,
        head_width: int,
        seed: int,
        heads: int,
        batch: int,
        start: int,
        padding: str,
        sms: int,
        spare: int,
    ) -> None:
        check(
            Attention(dtype, seed, "decode", heads, head_width, batch, 1, start, padding, sms, "float32", spare),
            device,
        )

    def test_context_for_a_product(self, device: EmulatedDevice, dtype: str, head_width: int) -> None:
        check(Attention(dtype, 2, "decode", 3, head_width, 2, 1, 150, "left", 4, dtype), device)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", TILED_WIDTHS)
class TestTiled:
    @settings(max_examples=6)
    @given(time=st.sampled_from((1, 8, 63, 64, 65, 100, 130)), arch=st.sampled_from((86, 90)), **PROMPTS)
    def test_attention(self, emulator: type[EmulatedDevice], head_width: int, arch: int, **prompt: Any) -> None:
        check(Attention("float32", kind="tiled", head_width=head_width, **prompt), emulator(arch=arch))

    def test_tiles_that_need_no_mask(self, device: EmulatedDevice, head_width: int) -> None:
        check(Attention("float32", 4, "tiled", 2, head_width, 1, 200, 130), device)

    def test_before_sm_80(self, emulator: type[EmulatedDevice], head_width: int) -> None:
        """Less shared memory, and copies that are done at once."""
        old = emulator(arch=75)
        assert launches.has_tiled("float32", head_width, 70, 75) == (head_width <= 96)
        if head_width <= 96:
            check(Attention("float32", 1, "tiled", 2, head_width, 1, 70, 65, "holes"), old)


ONE_OF_EACH = (
    Attention("float32", 3, "rows", 2, 80, 2, 9, 30, "holes"),
    Attention("bfloat16", 3, "flash", 2, 64, 1, 100, 30, "holes"),
    Attention("float32", 3, "tiled", 2, 64, 2, 100, 30, "holes"),
    Attention("float16", 3, "decode", 2, 96, 2, 1, 250, "left", 16, "float32"),
)


@pytest.mark.parametrize("problem", ONE_OF_EACH, ids=lambda p: p.kind)
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(
    emulator: type[EmulatedDevice], problem: Attention
) -> None:
    results = [problem.run(emulator(seed=seed)).tobytes() for seed in (0, 1, 2, 3)]
    assert len(set(results)) == 1


@pytest.mark.parametrize("problem", ONE_OF_EACH, ids=lambda p: p.kind)
@pytest.mark.parametrize("gone", ["after", "padding"])
def test_columns_that_are_not_visible_have_no_influence(device: EmulatedDevice, problem: Attention, gone: str) -> None:
    """Whatever stands there: the numbers that an earlier, longer sequence left, or those of padding. Clauses: ATT-7, KVC-2."""
    before = problem.run(device).copy()
    _, keys, values, is_real = problem.inputs
    hidden = np.arange(keys.shape[2]) >= problem.start + problem.time
    for row in range(len(keys)):
        unseen = hidden if gone == "after" else ~is_real[row].astype(bool) & ~hidden
        keys[row][:, unseen] = values[row][:, unseen] = 1000.0
    assert problem.run(device).tobytes() == before.tobytes()
