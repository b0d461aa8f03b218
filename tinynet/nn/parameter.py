"""PyTorch's own parameters and buffers: the module torch.nn.parameter."""

import sys

import torch.nn.parameter
from torch.nn.parameter import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.parameter
