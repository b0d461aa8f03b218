"""The same seed on the same machine, with the same versions and number of threads, gives the same bits."""

import os

import torch


def make_deterministic(seed: int) -> None:
    """Seeds PyTorch and asks it for its reproducible algorithms, here and from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would fill every torch.empty too, which nobody reads before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
