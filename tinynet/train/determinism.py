"""Determinism: the same seed, machine, versions and number of threads give bit-identical results."""

import os

import torch


def make_deterministic(seed: int) -> None:
    """Seeds PyTorch and makes it use deterministic algorithms from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every torch.empty, as deterministic mode does, is not needed: no memory is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
