"""Kernels beside PyTorch: correctness first, then time, in one run. `python -m benchmarks --help`."""
