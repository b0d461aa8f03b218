"""PyTorch's own calls with other parameters: the module torch.nn.utils.stateless."""

import sys

import torch.nn.utils.stateless
from torch.nn.utils.stateless import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.utils.stateless
