"""PyTorch's own initializations: the module torch.nn.init."""

import sys

import torch.nn.init
from torch.nn.init import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.init
