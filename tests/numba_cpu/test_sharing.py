"""Which calls run on all threads, by the sizes of the model."""

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from hypothesis import given
from hypothesis import strategies as st

from accel.numba_cpu import sharing
from bloomref.presets.preset_registry import PRESETS

ROWS = st.integers(1, 4096)


@pytest.fixture(autouse=True, scope="module")
def _eight_threads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "thread_count", lambda: 8)
        yield


def of(preset: str, itemsize: int = 4) -> sharing.Sharing:
    return sharing.Sharing(PRESETS[preset].config, itemsize)


def test_a_step_of_the_embedded_preset_runs_on_one_thread():
    tiny = of("bloom_tiny_udhr")
    assert {tiny.attention(1, 1, 500), tiny.mlp(1), tiny.logits(1)} == {1}


def test_a_long_prompt_of_the_embedded_preset_runs_on_all():
    tiny = of("bloom_tiny_udhr")
    assert {tiny.attention(1, 500, 500), tiny.mlp(500)} == {8}
    assert tiny.attention(16, 1, 2048) == 8  # a step whose cache is long


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_call_of_the_smallest_released_model_runs_on_all(itemsize):
    released = of("bloom_560m_multi", itemsize)
    assert {released.attention(1, 1, 1), released.mlp(1), released.logits(1)} == {8}


@given(ROWS, ROWS, st.sampled_from(sorted(PRESETS)))
def test_more_rows_never_run_on_fewer_threads(some, more, preset):
    few, many = sorted((some, more))
    model = of(preset)
    assert model.mlp(few) <= model.mlp(many)
    assert model.logits(few) <= model.logits(many)
    assert model.attention(1, few, few) <= model.attention(1, many, many)
