"""`python -m benchmarks.gpu`: checks the CuPy backend, and measures it next to other implementations on a GPU."""
