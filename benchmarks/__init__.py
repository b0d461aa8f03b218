"""Compares kernels with PyTorch, first the results, then the time. `python -m benchmarks --help`.

Imports are relative: the wheel contains this folder as `tinynet.benchmarks`, which `tinynet bench` runs.
"""
