"""PyTorch's own learning-rate schedulers, which work with every optimizer: torch.optim.lr_scheduler."""

import sys

import torch.optim.lr_scheduler
from torch.optim.lr_scheduler import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.optim.lr_scheduler
