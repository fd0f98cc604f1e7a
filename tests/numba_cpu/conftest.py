"""Tests that import kernels directly use the backend's cache folder, too. Next to the sources, Numba would miss a
change in an inlined kernel or another size of the tile."""

try:
    from accel.numba_cpu.jit_cache import use_cache_folder
except ImportError:  # numba is not installed: every test here is skipped
    pass
else:
    use_cache_folder()
