"""Kernels that a test imports by themselves are kept where the backend keeps them, not beside their sources: Numba
would not see there that a kernel which another one inlines has changed, nor that the tile has another size."""

try:
    from accel.numba_cpu.jit_cache import use_cache_folder
except ImportError:  # numba is not installed: every test here is skipped
    pass
else:
    use_cache_folder()
