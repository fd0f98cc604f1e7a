"""The attention kernels against the reference in float64: every dtype, head width, start and kind of mask."""

from typing import Any

import numpy as np
import pytest
from attention_problem import Attention
from budget import check
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_draws import DTYPES, HALVES, SHORT_DTYPES, check_bits_in_any_order, seeds
from strategies import MASKS

from accel.cupy_gpu import launches

HEAD_WIDTHS = (64, 80, 96, 128, 33)
TILED_WIDTHS = (*HEAD_WIDTHS, 1, 16, 112)
ROW_WIDTHS = (*HEAD_WIDTHS, 1, 160, 520)  # the last is more than one load per lane in every dtype
MASKED = {"seed": seeds, "padding": st.sampled_from(MASKS)}
PROMPTS = {
    **MASKED, "heads": st.sampled_from((1, 3)), "batch": st.integers(1, 2), "start": st.sampled_from((0, 1, 63, 64, 70)),
}  # fmt: skip
"""Prompts around the tiles of 64 queries and 64 keys."""


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", ROW_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
class TestRows:
    @settings(max_examples=10)
    @given(
        heads=st.sampled_from((1, 2, 3, 9, 12)),
        batch=st.integers(1, 2),
        time=st.integers(1, 9),
        start=st.integers(0, 40),
        **MASKED,
    )
    def test_results_are_within_the_budget(
        self, device: EmulatedDevice, dtype: str, head_width: int, **call: Any
    ) -> None:
        check(Attention(dtype, kind="rows", head_width=head_width, **call), device)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("dtype", HALVES)
class TestFlash:
    @settings(max_examples=6)
    @given(time=st.sampled_from((1, 5, 63, 64, 65, 100, 130)), **PROMPTS)
    def test_results_are_within_the_budget(
        self, device: EmulatedDevice, dtype: str, head_width: int, **prompt: Any
    ) -> None:
        check(Attention(dtype, kind="flash", head_width=head_width, **prompt), device)

    def test_before_sm_80_there_is_one_stage(self, emulator: type[EmulatedDevice], dtype: str, head_width: int) -> None:
        old = emulator(arch=75)
        assert launches.has_flash(dtype, head_width, 75) == (dtype == "float16")
        if dtype == "float16":
            check(Attention(dtype, 1, "flash", 2, head_width, 1, 70, 65, "holes"), old)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("dtype", SHORT_DTYPES)
class TestDecode:
    @settings(max_examples=10)
    @given(
        heads=st.sampled_from((1, 2, 3, 9)),
        batch=st.integers(1, 3),
        start=st.one_of(st.integers(0, 20), st.integers(60, 300)),
        sms=st.sampled_from((1, 5, 16)),
        spare=st.sampled_from((0, 3, 200)),
        **MASKED,
    )
    def test_results_are_within_the_budget(
        self, device: EmulatedDevice, dtype: str, head_width: int, **call: Any
    ) -> None:
        check(Attention(dtype, kind="decode", head_width=head_width, time=1, context="float32", **call), device)

    def test_the_context_may_have_the_compute_dtype(self, device: EmulatedDevice, dtype: str, head_width: int) -> None:
        check(Attention(dtype, 2, "decode", 3, head_width, 2, 1, 150, "left", 4, dtype), device)


@pytest.mark.clause("ATT-3", "ATT-4", "ATT-5", "ATT-6", "ATT-7", "ATT-8", "ATT-9")
@pytest.mark.parametrize("head_width", TILED_WIDTHS)
class TestTiled:
    @settings(max_examples=6)
    @given(time=st.sampled_from((1, 8, 63, 64, 65, 100, 130)), arch=st.sampled_from((86, 90)), **PROMPTS)
    def test_results_are_within_the_budget(
        self, emulator: type[EmulatedDevice], head_width: int, arch: int, **prompt: Any
    ) -> None:
        check(Attention("float32", kind="tiled", head_width=head_width, **prompt), emulator(arch=arch))

    def test_some_tiles_need_no_mask(self, device: EmulatedDevice, head_width: int) -> None:
        check(Attention("float32", 4, "tiled", 2, head_width, 1, 200, 130), device)

    def test_sm_75_has_less_shared_memory_and_no_asynchronous_copies(
        self, emulator: type[EmulatedDevice], head_width: int
    ) -> None:
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
    check_bits_in_any_order(problem, emulator)


@pytest.mark.parametrize("problem", ONE_OF_EACH, ids=lambda p: p.kind)
@pytest.mark.parametrize("gone", ["after", "padding"])
def test_columns_that_are_not_visible_have_no_influence(device: EmulatedDevice, problem: Attention, gone: str) -> None:
    """They may hold numbers of an earlier, longer sequence, or those of padding. Clauses: ATT-7, KVC-2."""
    before = problem.run(device).copy()
    _, keys, values, is_real = problem.inputs
    is_after = np.arange(keys.shape[2]) >= problem.start + problem.time
    for row in range(len(keys)):
        invisible = is_after if gone == "after" else ~is_real[row].astype(bool) & ~is_after
        keys[row][:, invisible] = values[row][:, invisible] = 1000.0
    assert problem.run(device).tobytes() == before.tobytes()
