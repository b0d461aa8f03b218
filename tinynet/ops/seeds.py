"""Seeds of the random numbers that kernels draw."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet_kernels import replays

_BOUND = 1 << 62


def new_seed(device: torch.device) -> Tensor:
    """A seed, int64 [1], from PyTorch's generator of the device; another one in each replay of a recorded step."""
    if replays.recorder() is None:
        return torch.randint(_BOUND, (1,), device=device)
    seed = torch.empty(1, dtype=torch.int64, device=device)
    return replays.fill(seed, lambda seed: seed.random_(_BOUND))  # what randint does
