"""`python -m benchmarks.gpu`: the CuPy backend checked, and measured beside others, where a GPU is."""
