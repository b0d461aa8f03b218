"""Compares kernels with PyTorch, first the results, then the time. `python -m benchmarks --help`."""
