"""The compiler of every kernel: NumPy's rules for division, no GIL, and the cache of `jit_cache`."""

from typing import Final

from numba import njit

from accel.numba_cpu.jit_cache import can_cache

# No fast-math: with any flag the compiler fuses or regroups differently in each context, and a kernel loaded from the
# cache no longer gives the bits of one just compiled. Code that needs a fused multiply-add calls `fma`.
FASTMATH: Final = False

jit = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=can_cache())
jit_parallel = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=can_cache(), parallel=True)
jit_inline = njit(fastmath=FASTMATH, error_model="numpy", inline="always")
