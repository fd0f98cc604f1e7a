"""Hypothesis strategies and lists of arguments that the kernel tests share."""

from emulated_device import EmulatedDevice
from hypothesis import strategies as st
from problem import Problem

from accel.cupy_gpu.sources import CPP_TYPE

DTYPES = tuple(CPP_TYPE)
"""float64, float32, float16 and bfloat16."""
SHORT_DTYPES = DTYPES[1:]
"""The dtypes of decoding steps."""
HALVES = DTYPES[2:]
"""The dtypes of tensor cores."""
seeds = st.integers(0, 2**32 - 1)
sm_counts = st.sampled_from((1, 4, 132))
output_counts = st.one_of(st.integers(1, 70), st.sampled_from((127, 128, 129)))


def check_bits_in_any_order(problem: Problem, emulator: type[EmulatedDevice]) -> None:
    """Assert that a kernel's bits do not depend on the order of thread blocks and threads."""
    assert len({problem.run(emulator(seed=seed)).tobytes() for seed in (0, 1, 2, 3)}) == 1
