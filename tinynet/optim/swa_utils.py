"""PyTorch's own averages of weights, which work with every model: torch.optim.swa_utils."""

import sys

import torch.optim.swa_utils
from torch.optim.swa_utils import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.optim.swa_utils
