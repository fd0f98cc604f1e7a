"""The training step on the CPU: BLAS for the products, kernels for everything between them."""
