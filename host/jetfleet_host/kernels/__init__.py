"""CUDA kernels, cross-compiled to cubins on a machine without GPU, driver or CUDA toolkit."""
