"""PyTorch's own pruning: the module torch.nn.utils.prune."""

import sys

import torch.nn.utils.prune
from torch.nn.utils.prune import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.utils.prune
